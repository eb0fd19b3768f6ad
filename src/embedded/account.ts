/**
 * Who runs PostgreSQL, which refuses to run as root: as root, the unprivileged user `nobody`; otherwise we ourselves.
 *
 * That user may not reach what lies below a private folder such as /root, so whatever it needs and can't reach is kept
 * below /var/tmp. No folder that we did not make is made more open.
 */
import { Effect, FileSystem, Path } from "effect"
import { execFileSync } from "node:child_process"
import { lchownSync, lstatSync, mkdirSync, readdirSync, statSync } from "node:fs"
import { join } from "node:path"
import { type Account, ServerFailed } from "./serverProcess.ts"
import { refuseForeign } from "./trust.ts"

/** What another user has to reach lies here, where everybody can read. */
export const publicFolder = "/var/tmp"

const idOf = (flag: "-u" | "-g"): number => Number(execFileSync("id", [flag, "nobody"], { encoding: "utf8" }).trim())

/** `undefined`: run as ourselves. */
export const serverAccount: Effect.Effect<Account | undefined, ServerFailed> = Effect.try({
  try: () => (process.getuid?.() === 0 ? { uid: idOf("-u"), gid: idOf("-g") } : undefined),
  catch: (cause) =>
    new ServerFailed({
      server: "postgres",
      problem: `as root it has to run as the user nobody, who is not there: ${String(cause)}`,
    }),
})

/** May everybody run this program, or enter this folder, and enter all folders on the way to it? */
export const isReachable = Effect.fnUntraced(function* (entry: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  for (let current = entry; ; current = path.dirname(current)) {
    const info = yield* fs.stat(current)
    if ((info.mode & 0o001) === 0) return false
    if (path.dirname(current) === current) return true
  }
})

const giveTo = (folder: string, account: Account): void => {
  lchownSync(folder, account.uid, account.gid)
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const child = join(folder, entry.name)
    if (entry.isDirectory()) giveTo(child, account)
    else lchownSync(child, account.uid, account.gid)
  }
}

/**
 * A folder for a server's data, owned by its user: `folder` itself, or where that user can't reach it, one below /var/tmp
 * to which `folder` is a link.
 */
export const reachableData = Effect.fnUntraced(function* (folder: string, account: Account | undefined) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.makeDirectory(path.dirname(folder), { recursive: true })
  yield* refuseForeign(folder, account?.uid)
  if (account === undefined || (yield* isReachable(path.dirname(folder)))) {
    yield* fs.makeDirectory(folder, { recursive: true, mode: 0o700 })
    // Only what is not that user's yet: in a folder that is, a server may be at work, making and removing files.
    if (account !== undefined && statSync(folder).uid !== account.uid) {
      yield* Effect.sync(() => giveTo(folder, account))
    }
    return folder
  }
  // The link is the only record of the place: whoever removes the folder starts anew, not on what an earlier one left.
  const target = yield* fs.readLink(folder).pipe(
    Effect.catchIf(
      (error) => error.reason._tag === "NotFound",
      () =>
        Effect.tap(fs.makeTempDirectory({ directory: publicFolder, prefix: "objectlog-data-" }), (made) =>
          fs.symlink(made, folder),
        ),
    ),
  )
  return yield* Effect.try({
    try: () => {
      const found = lstatSync(target, { throwIfNoEntry: false })
      // Alone or not at all: what another one has made in the meantime is not taken over.
      if (found === undefined) mkdirSync(target, { mode: 0o700 })
      else if (!found.isDirectory()) throw new Error("is no folder")
      lchownSync(target, account.uid, account.gid)
      return target
    },
    catch: (cause) => new ServerFailed({ server: "postgres", problem: `${target}: ${(cause as Error).message}` }),
  })
})
