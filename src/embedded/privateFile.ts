/** Files that their owner alone can read: credentials, and whatever holds them. */
import { Effect, FileSystem, Path, Redacted } from "effect"
import { randomBytes, randomUUID } from "node:crypto"

/** As a whole or not at all, also where there is a file already: whoever may read that one does not get to read this one. */
export const writePrivate = Effect.fnUntraced(function* (file: string, text: string) {
  const fs = yield* FileSystem.FileSystem
  const made = `${file}.${randomUUID()}`
  yield* fs.writeFileString(made, text, { mode: 0o600, flag: "wx" }).pipe(
    Effect.andThen(fs.rename(made, file)),
    Effect.onError(() => Effect.ignore(fs.remove(made))),
  )
})

/** The password of this installation for one kind of server: made once, then read from its folder. */
export const ownPassword = Effect.fnUntraced(function* (folder: string, kind: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const file = path.join(folder, `${kind}.password`)
  if (!(yield* fs.exists(file))) yield* writePrivate(file, randomBytes(18).toString("base64url"))
  return Redacted.make(yield* fs.readFileString(file))
})
