/** `objectlog start`: embedded servers where none are given, and a worker on them. */
import { Effect, FileSystem, Layer, Path, Redacted } from "effect"
import { Command } from "effect/cli"
import { settings as readSettings, type Settings } from "../config/Config.ts"
import { Broker } from "../broker/Broker.ts"
import { ownFolder, unusable } from "../embedded/dataFolder.ts"
import { freeBytes } from "../embedded/disk.ts"
import { awaitRoom, fullDiskIn, recoverFromFullDisk } from "../embedded/fullDisk.ts"
import { NatsServer } from "../embedded/NatsServer.ts"
import { PostgresServers } from "../embedded/PostgresServers.ts"
import { writePrivate } from "../embedded/privateFile.ts"
import { claimFolder } from "../embedded/reaper.ts"
import type { ShardSettings } from "../config/ConfigShards.ts"
import { loggerLayer } from "./logging.ts"
import { announce } from "./output.ts"
import { failInTime } from "./shutdown.ts"
import { serve } from "./worker.ts"

/** What the embedded servers try first. PostgreSQL stays away from the usual port, where a system's server may sit. */
const natsPort = 4222
const postgresPort = 54_320
const shardNames = ["shard-a", "shard-b"]

const hints = [
  "",
  "Try, in another terminal:",
  '  npm run -s objectlog -- append 42 "disk 3 replaced"',
  "  npm run -s objectlog -- query 42",
  "  export NATS_URL=$(npm run -s objectlog url)     # for any other client, such as the nats command",
  "Ctrl-C stops everything.",
]

const embeddedNats = Effect.fnUntraced(function* (dataDir: string) {
  const path = yield* Path.Path
  const context = yield* Layer.build(NatsServer.layer({ dataDir: path.join(dataDir, "nats"), port: natsPort }))
  const { control, logFile, port, url } = yield* Effect.provideContext(NatsServer, context)
  yield* announce(`nats-server   ${url}${port === natsPort ? "" : `   (port ${natsPort} was taken)`}`)
  const metFullDisk = fullDiskIn(logFile, control.pid)
  return { nats: Redacted.make(url), embedded: { control, metFullDisk }, lost: [control.lost] }
})

const embeddedShards = Effect.fnUntraced(function* (dataDir: string) {
  const context = yield* Layer.build(PostgresServers.layer({ dataDir, shards: shardNames, port: postgresPort }))
  const { shards } = yield* Effect.provideContext(PostgresServers, context)
  yield* Effect.forEach(shards, ({ host, name, port, user }, index) =>
    announce(
      `PostgreSQL    postgres://${user}@${host}:${port}/objectlog   ${name}${port === postgresPort + index ? "" : `   (port ${postgresPort + index} was taken)`}`,
    ),
  )
  return {
    shards: shards.map((shard): ShardSettings => ({ ...shard, weight: 1 })),
    lost: shards.map(({ control }) => control.lost),
  }
})

const start = Effect.fnUntraced(function* (settings: Settings) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const dataDir = path.resolve(settings.dataDir)
  yield* ownFolder(dataDir)
  if (settings.natsUrl === undefined) yield* awaitRoom("nats-server", freeBytes(dataDir))
  yield* Effect.catchTag(claimFolder(dataDir, "objectlog"), "PlatformError", unusable(dataDir))
  const [broker, databases] = yield* Effect.all(
    [
      settings.natsUrl === undefined
        ? embeddedNats(dataDir)
        : Effect.succeed({ nats: settings.natsUrl, embedded: undefined, lost: [] }),
      settings.shards === undefined ? embeddedShards(dataDir) : Effect.succeed({ shards: settings.shards, lost: [] }),
    ],
    { concurrency: 2 },
  )
  const { embedded, nats } = broker
  const { shards } = databases
  // A worker whose own server is gone for good would wait for it for ever.
  const anyLost = Effect.raceAllFirst([Effect.never, ...broker.lost, ...databases.lost]).pipe(
    Effect.tapError((error) => Effect.sync(() => failInTime(error.message))),
  )
  const running = path.join(dataDir, "running.json")
  yield* serve(
    settings,
    { nats, shards },
    Effect.fnUntraced(function* (metrics) {
      if (settings.natsUrl === undefined) {
        yield* writePrivate(running, JSON.stringify({ nats: Redacted.value(nats), pid: process.pid }))
      }
      if (embedded !== undefined) {
        const { connection } = yield* Broker
        const { control, metFullDisk } = embedded
        const isSilent = Effect.map(metFullDisk, (hasMet) => hasMet || connection().isSilent)
        yield* Effect.forkScoped(recoverFromFullDisk({ isSilent, free: freeBytes(dataDir), restart: control.restart }))
      }
      yield* announce(`worker        ready; http://${metrics}/readyz   data in ${settings.dataDir}`)
      yield* Effect.forEach(hints, announce)
    }),
  ).pipe(Effect.raceFirst(anyLost), Effect.ensuring(Effect.ignore(fs.remove(running))))
}, Effect.scoped)

export const startCommand = Command.make(
  "start",
  {},
  Effect.fnUntraced(function* () {
    const settings = yield* readSettings
    yield* Effect.provide(start(settings), loggerLayer(settings))
  }),
).pipe(Command.withDescription("run everything here: embedded servers where none are given, and a worker"))
