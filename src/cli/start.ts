/** `objectlog start`: embedded servers where none are given, and a worker on them. */
import { Console, Effect, FileSystem, Layer, Path, Redacted, Schema } from "effect"
import { Command } from "effect/cli"
import { settings as readSettings, type Settings, type ShardAddress } from "../Config.ts"
import { NatsServer } from "../embedded/NatsServer.ts"
import { PostgresServers } from "../embedded/PostgresServers.ts"
import { loggerLayer } from "./logging.ts"
import { serve } from "./worker.ts"

/** What the embedded servers try first. PostgreSQL stays away from the usual port, where a system's server may sit. */
const natsPort = 4222
const postgresPort = 54_320
const shardNames = ["shard-a", "shard-b"]

export class AlreadyRunning extends Schema.TaggedError<AlreadyRunning>()("AlreadyRunning", {
  dataDir: Schema.String,
  pid: Schema.Number,
}) {
  override get message(): string {
    return `DATA_DIR: ${this.dataDir} is in use by the objectlog with pid ${this.pid}; stop that one, or set another DATA_DIR`
  }
}

const isObjectlog = (pid: number): Effect.Effect<boolean, never, FileSystem.FileSystem> =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(`/proc/${pid}/cmdline`)).pipe(
    Effect.map((commandLine) => commandLine.includes("main.ts")),
    Effect.catch(() => Effect.succeed(false)),
  )

/**
 * Claims the data folder for this process. A claim whose process is gone is void.
 *
 * The claim appears at once with its content, by a hard link that fails where one is. A void one is moved away, which only
 * one process can do; should that have hit a newer claim, it is put back.
 */
const claim = Effect.fnUntraced(function* (dataDir: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.makeDirectory(dataDir, { recursive: true })
  const file = path.join(dataDir, "objectlog.pid")
  const own = `${file}.${process.pid}`
  const moved = `${own}.void`
  const holder = Effect.fnUntraced(function* (of: string) {
    const pid = Number(yield* Effect.catch(fs.readFileString(of), () => Effect.succeed("0")))
    return pid > 0 && pid !== process.pid && (yield* isObjectlog(pid)) ? pid : undefined
  })
  const take = Effect.gen(function* () {
    for (;;) {
      const linked = yield* fs.link(own, file).pipe(
        Effect.as(true),
        Effect.catchIf(
          (error) => error.reason._tag === "AlreadyExists",
          () => Effect.succeed(false),
        ),
      )
      if (linked) return
      const pid = yield* holder(file)
      if (pid !== undefined) return yield* new AlreadyRunning({ dataDir, pid })
      yield* fs.rename(file, moved).pipe(
        Effect.catchIf(
          (error) => error.reason._tag === "NotFound",
          () => Effect.void,
        ),
      )
      if ((yield* holder(moved)) !== undefined) yield* Effect.ignore(fs.link(moved, file))
      yield* fs.remove(moved, { force: true })
    }
  })
  yield* Effect.acquireRelease(
    Effect.andThen(fs.writeFileString(own, String(process.pid)), take).pipe(
      Effect.ensuring(Effect.ignore(fs.remove(own, { force: true }))),
    ),
    () => Effect.ignore(fs.remove(file)),
  )
})

const embeddedNats = Effect.fnUntraced(function* (dataDir: string) {
  const path = yield* Path.Path
  const context = yield* Layer.build(NatsServer.layer({ dataDir: path.join(dataDir, "nats"), port: natsPort }))
  const { port, url } = yield* Effect.provideContext(NatsServer, context)
  yield* Console.log(`nats-server   ${url}${port === natsPort ? "" : `   (port ${natsPort} was taken)`}`)
  return Redacted.make(url)
})

const embeddedShards = Effect.fnUntraced(function* (dataDir: string) {
  const context = yield* Layer.build(PostgresServers.layer({ dataDir, shards: shardNames, port: postgresPort }))
  const { shards } = yield* Effect.provideContext(PostgresServers, context)
  yield* Effect.forEach(shards, ({ host, name, port, user }, index) =>
    Console.log(
      `PostgreSQL    postgres://${user}@${host}:${port}/objectlog   ${name}${port === postgresPort + index ? "" : `   (port ${postgresPort + index} was taken)`}`,
    ),
  )
  return shards.map((shard): ShardAddress => ({ ...shard, weight: 1, url: undefined }))
})

const start = Effect.fnUntraced(function* (settings: Settings) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const dataDir = path.resolve(settings.dataDir)
  yield* claim(dataDir)
  const [nats, shards] = yield* Effect.all(
    [
      settings.natsUrl === undefined ? embeddedNats(dataDir) : Effect.succeed(settings.natsUrl),
      settings.shards === undefined ? embeddedShards(dataDir) : Effect.succeed(settings.shards),
    ],
    { concurrency: 2 },
  )
  const running = path.join(dataDir, "running.json")
  yield* serve(
    settings,
    { nats, shards },
    Effect.fnUntraced(function* (metricsPort) {
      if (settings.natsUrl === undefined) {
        yield* fs.writeFileString(running, JSON.stringify({ nats: Redacted.value(nats), pid: process.pid }))
      }
      yield* Console.log(`worker        ready; http://127.0.0.1:${metricsPort}/readyz   data in ${settings.dataDir}`)
      yield* Console.log(`\nTry, in another terminal:
  npm run -s objectlog -- append 42 "disk 3 replaced"
  npm run -s objectlog -- query 42
Ctrl-C stops everything.`)
    }),
  ).pipe(Effect.ensuring(Effect.ignore(fs.remove(running))))
}, Effect.scoped)

export const startCommand = Command.make(
  "start",
  {},
  Effect.fnUntraced(function* () {
    const settings = yield* readSettings
    yield* Effect.provide(start(settings), loggerLayer(settings))
  }),
).pipe(Command.withDescription("run everything here: embedded servers where none are given, and a worker"))
