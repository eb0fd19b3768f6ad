/** Finds nats-server: `NATS_SERVER`, the PATH, or Debian's package unpacked into a cache, without touching the system. */
import { Effect, FileSystem, Path, Schema } from "effect"
import { cacheFolder } from "./cacheFolder.js"
import { reasonText } from "./systemError.ts"
import { runProgram } from "./runProgram.ts"
import { refuseForeign } from "./trust.ts"

class NatsServerMissing extends Schema.TaggedError<NatsServerMissing>()("NatsServerMissing", {
  problem: Schema.String,
}) {
  override get message(): string {
    return `nats-server: ${this.problem}; install it (Debian: apt-get install nats-server, macOS: brew install nats-server, Windows: winget install NATSAuthors.NATSServer), or set NATS_SERVER to its path, or NATS_URL to a server that runs`
  }
}

/** Where servers are installed although a user's PATH may leave it out. */
const systemFolders = ["/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"]

/** Downloads Debian's package into `work`. */
const download = Effect.fnUntraced(function* (work: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  // A private state: the machine's own package lists may be missing, and stay as they are.
  const state = path.join(work, "state")
  yield* fs.makeDirectory(path.join(state, "lists", "partial"), { recursive: true })
  yield* fs.makeDirectory(path.join(state, "cache", "archives", "partial"), { recursive: true })
  const asRoot = "-oAPT::Sandbox::User=root"
  const isolated = [
    `-oDir::State::lists=${path.join(state, "lists")}`,
    `-oDir::Cache=${path.join(state, "cache")}`,
    asRoot,
  ]
  const apt = (...args: ReadonlyArray<string>) => runProgram("apt-get", args, { cwd: work })
  yield* apt(asRoot, "download", "nats-server").pipe(
    Effect.catch(() => Effect.andThen(apt(...isolated, "update"), apt(...isolated, "download", "nats-server"))),
  )
})

/** Unpacks the program of Debian's package into the cache; its path. */
const fromDebian = Effect.fnUntraced(function* (cache: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.makeDirectory(cache, { recursive: true })
  const work = yield* fs.makeTempDirectoryScoped({ directory: cache, prefix: "download-" })
  yield* download(work)
  const archive = (yield* fs.readDirectory(work)).find((name) => name.endsWith(".deb"))
  const unpacked = path.join(work, "package")
  yield* runProgram("dpkg-deb", ["-x", path.join(work, archive ?? "nats-server.deb"), unpacked])
  // Renaming is atomic: whoever starts at the same moment sees the whole program or none.
  const target = path.join(cache, "nats-server")
  yield* Effect.catch(fs.rename(path.join(unpacked, "usr/sbin/nats-server"), target), () =>
    fs.rename(path.join(unpacked, "usr/bin/nats-server"), target),
  )
  return target
}, Effect.scoped)

/** The path of the program. */
export const findNatsServer = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const named = process.env["NATS_SERVER"]
  if (named !== undefined && named !== "") {
    if (yield* Effect.orElseSucceed(fs.exists(named), () => false)) return named
    return yield* new NatsServerMissing({ problem: `NATS_SERVER names ${JSON.stringify(named)}, which does not exist` })
  }
  const folders = [...(process.env["PATH"] ?? "").split(path.sep === "\\" ? ";" : ":"), ...systemFolders]
  for (const folder of folders) {
    const program = path.join(folder, process.platform === "win32" ? "nats-server.exe" : "nats-server")
    // A folder of the PATH that this user may not enter, such as root's own after su, holds nothing for him.
    if (folder !== "" && (yield* Effect.orElseSucceed(fs.exists(program), () => false))) return program
  }
  const cache = cacheFolder()
  const nowhere = (problem: string) => new NatsServerMissing({ problem: `it is not on this machine, and ${problem}` })
  const elsewhere = "set XDG_CACHE_HOME to a folder that can be written"
  if (cache === undefined) {
    return yield* nowhere(`there is no home folder to unpack Debian's package in (${elsewhere})`)
  }
  const cached = path.join(cache, "nats-server")
  // XDG_CACHE_HOME may name a place where everybody can put a program.
  yield* refuseForeign(cached)
  if (yield* Effect.orElseSucceed(fs.exists(cached), () => false)) return cached
  return yield* fromDebian(cache).pipe(
    Effect.catchTags({
      PlatformError: (error) => Effect.fail(nowhere(`${cache} can't be used: ${reasonText(error)} (${elsewhere})`)),
      ProgramFailed: ({ command, problem }) =>
        Effect.fail(nowhere(`${command} can't get Debian's package: ${problem}`)),
    }),
  )
})
