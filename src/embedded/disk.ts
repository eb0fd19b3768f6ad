/** The disk under an embedded server, and how much of it the server may take. */
import { Effect } from "effect"
import { readdir, readFile, stat, statfs } from "node:fs/promises"

/** Bytes that are free for us; `undefined` where the system does not tell. */
export const freeBytes = (folder: string): Effect.Effect<number | undefined> =>
  Effect.promise(() =>
    statfs(folder).then(
      ({ bavail, bsize }) => bavail * bsize,
      () => undefined,
    ),
  )

/** Bytes of what a nats-server keeps. */
interface Stored {
  /** On the disk. */
  readonly used: number
  /** Reserved for streams with a limit; they are found again only in a store that is larger. */
  readonly reserved: number
}

const metaFile = /[/\\]streams[/\\][^/\\]+[/\\]meta\.inf$/

/** What lies in a nats-server's folder. Files may go while we look. */
const storedIn = (folder: string): Effect.Effect<Stored> =>
  Effect.promise(async () => {
    const files = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
    let [used, reserved] = [0, 0]
    for (const file of files) {
      if (!file.isFile()) continue
      const path = `${file.parentPath}/${file.name}`
      used += await stat(path).then(
        ({ size }) => size,
        () => 0,
      )
      if (metaFile.test(path)) reserved += await maxBytesIn(path)
    }
    return { used, reserved }
  })

/** The limit of the stream that the file describes; 0 for none, or where it can't be read. */
const maxBytesIn = async (path: string): Promise<number> => {
  try {
    const { max_bytes } = JSON.parse(await readFile(path, "utf8")) as { readonly max_bytes?: unknown }
    return typeof max_bytes === "number" && max_bytes > 0 ? max_bytes : 0
  } catch {
    return 0
  }
}

/** Room for what has no limit of its own, where nearly all is reserved. */
const besideMin = 1024 ** 2

/**
 * What an embedded nats-server may store, in bytes. Its own rule is three quarters of what is free at its start, without what
 * it has stored already: each start would leave it less, and streams with a limit would not be found again.
 */
export const storeLimit = ({ reserved, used }: Stored, free: number): number =>
  Math.max(used + Math.floor((free / 4) * 3), reserved + besideMin)

/** The same for a folder and its disk; `undefined` where the system does not tell. */
export const storeLimitOf = Effect.fnUntraced(function* (folder: string) {
  const free = yield* freeBytes(folder)
  return free === undefined ? undefined : storeLimit(yield* storedIn(`${folder}/jetstream`), free)
})
