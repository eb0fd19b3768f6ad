/** Finds nats-server: `NATS_SERVER`, the PATH, or Debian's package unpacked into a cache, without touching the system. */
import { Effect, FileSystem, Path, Schema } from "effect"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { cacheFolder } from "../cacheFolder.js"
import { refuseForeign } from "./trust.ts"

export class NatsServerMissing extends Schema.TaggedError<NatsServerMissing>()("NatsServerMissing", {
  problem: Schema.String,
}) {
  override get message(): string {
    return `nats-server: ${this.problem}; install it (Debian: apt-get install nats-server, macOS: brew install nats-server, Windows: winget install NATSAuthors.NATSServer), or set NATS_SERVER to its path, or NATS_URL to a server that runs`
  }
}

/** Where servers are installed although a user's PATH may leave it out. */
const systemFolders = ["/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"]

const run = Effect.fnUntraced(function* (command: string, args: ReadonlyArray<string>, cwd: string) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const code = yield* spawner.exitCode(
    ChildProcess.make(command, [...args], { cwd, stdin: "ignore", stdout: "ignore", stderr: "ignore" }),
  )
  return Number(code) === 0
})

/** Downloads and unpacks Debian's package; the path of the program, or `undefined` where that can't be done. */
const fromDebian = Effect.fnUntraced(function* (cache: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.makeDirectory(cache, { recursive: true })
  const work = yield* fs.makeTempDirectoryScoped({ directory: cache, prefix: "download-" })
  // A private state: the machine's own package lists may be missing, and stay as they are.
  const state = path.join(work, "state")
  yield* fs.makeDirectory(path.join(state, "lists", "partial"), { recursive: true })
  yield* fs.makeDirectory(path.join(state, "cache", "archives", "partial"), { recursive: true })
  const isolated = [
    `-oDir::State::lists=${path.join(state, "lists")}`,
    `-oDir::Cache=${path.join(state, "cache")}`,
    "-oAPT::Sandbox::User=root",
  ]
  const downloaded =
    (yield* run("apt-get", ["-oAPT::Sandbox::User=root", "download", "nats-server"], work)) ||
    ((yield* run("apt-get", [...isolated, "update"], work)) &&
      (yield* run("apt-get", [...isolated, "download", "nats-server"], work)))
  if (!downloaded) return undefined
  const archive = (yield* fs.readDirectory(work)).find((name) => name.endsWith(".deb"))
  if (archive === undefined) return undefined
  const unpacked = path.join(work, "package")
  if (!(yield* run("dpkg-deb", ["-x", path.join(work, archive), unpacked], work))) return undefined
  for (const folder of ["usr/sbin", "usr/bin"]) {
    const program = path.join(unpacked, folder, "nats-server")
    if (yield* fs.exists(program)) {
      // Renaming is atomic: whoever starts at the same moment sees the whole program or none.
      const target = path.join(cache, "nats-server")
      yield* fs.rename(program, target)
      return target
    }
  }
  return undefined
})

/** The path of the program. */
export const findNatsServer = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const named = process.env["NATS_SERVER"]
  if (named !== undefined && named !== "") {
    if (yield* fs.exists(named)) return named
    return yield* new NatsServerMissing({ problem: `NATS_SERVER names ${JSON.stringify(named)}, which does not exist` })
  }
  const folders = [...(process.env["PATH"] ?? "").split(path.sep === "\\" ? ";" : ":"), ...systemFolders]
  for (const folder of folders) {
    const program = path.join(folder, process.platform === "win32" ? "nats-server.exe" : "nats-server")
    // A folder of the PATH that this user may not enter, such as root's own after su, holds nothing for him.
    if (folder !== "" && (yield* Effect.orElseSucceed(fs.exists(program), () => false))) return program
  }
  const cache = cacheFolder()
  if (cache === undefined) {
    return yield* new NatsServerMissing({ problem: "it is not on this machine, and there is no home folder for it" })
  }
  const cached = path.join(cache, "nats-server")
  // XDG_CACHE_HOME may name a place where everybody can put a program.
  yield* refuseForeign(cached)
  if (yield* fs.exists(cached)) return cached
  const unpacked = yield* fromDebian(cache).pipe(
    Effect.scoped,
    Effect.catch(() => Effect.succeed(undefined)),
  )
  return (
    unpacked ??
    (yield* new NatsServerMissing({ problem: "it is not on this machine, and there is no Debian package to be had" }))
  )
}).pipe(Effect.catchTag("PlatformError", (error) => Effect.fail(new NatsServerMissing({ problem: error.message }))))
