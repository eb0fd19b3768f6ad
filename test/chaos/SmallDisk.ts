/** A disk so small that it can be filled: a tmpfs, which only root can mount. */
import { Effect, FileSystem, Path, type Scope } from "effect"
import { execFile } from "node:child_process"

export interface SmallDisk {
  /** Takes all of the free space. */
  readonly fill: Effect.Effect<void>
  /** Gives it back. */
  readonly free: Effect.Effect<void>
}

const run = (command: string, ...args: ReadonlyArray<string>): Effect.Effect<string | undefined> =>
  Effect.callback((resume) => {
    execFile(command, args, (error, _, stderr) =>
      resume(Effect.succeed(error === null ? undefined : stderr.trim() || error.message)),
    )
  })

/** Mounts a disk on a new folder until the scope closes; tells why where that can't be done. */
export const mountSmallDisk = Effect.fnUntraced(function* (
  folder: string,
  megabytes: number,
): Effect.fn.Return<SmallDisk | { readonly skipped: string }, never, Scope.Scope | FileSystem.FileSystem | Path.Path> {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  if (process.platform !== "linux" || process.getuid?.() !== 0) {
    return { skipped: "only root on Linux can mount a small disk" }
  }
  yield* Effect.orDie(fs.makeDirectory(folder, { recursive: true }))
  const problem = yield* Effect.acquireRelease(
    run("mount", "-t", "tmpfs", "-o", `size=${megabytes}m,mode=0700`, "tmpfs", folder),
    (failed) =>
      failed !== undefined
        ? Effect.void
        : Effect.gen(function* () {
            // Whatever still has a file open there is gone soon; a lazy unmount does not wait for it.
            if ((yield* run("umount", folder)) !== undefined) yield* run("umount", "--lazy", folder)
          }),
  )
  if (problem !== undefined) return { skipped: `mount: ${problem}` }
  const ballast = path.join(folder, "ballast")
  return {
    // Ends with an error when the disk is full, which is what it is for.
    fill: Effect.asVoid(run("dd", "if=/dev/zero", `of=${ballast}`, "bs=64k")),
    free: Effect.ignore(fs.remove(ballast, { force: true })),
  }
})
