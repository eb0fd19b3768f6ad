/** Real servers for a test: in a folder of their own, on free ports, gone with the scope. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem, Layer } from "effect"
import { execFileSync } from "node:child_process"
import { NatsServer, type NatsServerOptions } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"

/** The first port that this process tries. Test files run side by side: each process looks for free ports in a range of its own. */
export const basePort = 20_000 + (process.pid % 400) * 50

/** A folder for data, removed with the scope, that every user may enter: as root, PostgreSQL runs as another one. */
export const temporary = Effect.flatMap(FileSystem.FileSystem, (fs) =>
  Effect.tap(fs.makeTempDirectoryScoped({ prefix: "objectlog-test-" }), (folder) => fs.chmod(folder, 0o755)),
)

const natsWith = (options: Partial<NatsServerOptions>) =>
  Layer.unwrap(Effect.map(temporary, (dataDir) => NatsServer.layer({ dataDir, port: basePort, ...options }))).pipe(
    Layer.provide(NodeServices.layer),
  )

export const TestNats = {
  layer: natsWith({}),
  /** One that may store so many bytes. */
  small: (maxFileStore: number) => natsWith({ maxFileStore }),
}

const portOfPostgres = basePort + 10

/** What a data folder of PostgresServers holds besides the shards. */
const passwordFile = "postgres.password"

/**
 * An initialised cluster to copy, which takes a fifth of the time of making one; where the test run has a folder for it.
 * Whoever comes first makes it; files that start side by side may do so twice.
 */
const template = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const folder = process.env["OBJECTLOG_TEST_TEMPLATES"]
  if (folder === undefined) return undefined
  const made = `${folder}/postgres`
  if (yield* fs.exists(made)) return made
  const work = yield* fs.makeTempDirectory({ directory: folder })
  yield* fs.chmod(work, 0o755)
  yield* Effect.scoped(
    Layer.build(PostgresServers.layer({ dataDir: work, shards: ["template"], port: portOfPostgres })),
  )
  yield* Effect.catch(fs.rename(work, made), (error) =>
    Effect.flatMap(fs.exists(made), (exists) => (exists ? Effect.void : Effect.fail(error))),
  )
  return made
})

/** Has the shards' clusters made beforehand, for tests that are not about that. */
export const copyTemplate = Effect.fnUntraced(function* (dataDir: string, shards: ReadonlyArray<string>) {
  const from = yield* template
  if (from === undefined) return
  // Not by Node: as root, the files belong to another user and have to stay his.
  yield* Effect.sync(() => {
    for (const shard of shards) execFileSync("cp", ["-Rp", `${from}/template`, `${dataDir}/${shard}`])
    execFileSync("cp", ["-p", `${from}/${passwordFile}`, dataDir])
  })
})

export const TestPostgres = {
  layer: (count: number) =>
    Layer.unwrap(
      Effect.gen(function* () {
        const dataDir = yield* temporary
        const shards = Array.from({ length: count }, (_, i) => `shard-${"abcdefgh"[i]}`)
        yield* copyTemplate(dataDir, shards)
        return PostgresServers.layer({ dataDir, shards, port: portOfPostgres })
      }),
    ).pipe(Layer.provide(NodeServices.layer)),
}
