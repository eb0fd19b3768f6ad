/** Real servers for a test: in a folder of their own, on free ports, gone with the scope. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem, Layer } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"

/** The first port that this process tries. Test files run side by side: each process looks for free ports in a range of its own. */
export const basePort = 20_000 + (process.pid % 400) * 50

/** A folder for data, removed with the scope, that every user may enter: as root, PostgreSQL runs as another one. */
export const temporary = Effect.flatMap(FileSystem.FileSystem, (fs) =>
  Effect.tap(fs.makeTempDirectoryScoped({ prefix: "objectlog-test-" }), (folder) => fs.chmod(folder, 0o755)),
)

export const TestNats = {
  layer: Layer.unwrap(Effect.map(temporary, (dataDir) => NatsServer.layer({ dataDir, port: basePort }))).pipe(
    Layer.provide(NodeServices.layer),
  ),
}

export const TestPostgres = {
  layer: (shards: number) =>
    Layer.unwrap(
      Effect.map(temporary, (dataDir) =>
        PostgresServers.layer({
          dataDir,
          shards: Array.from({ length: shards }, (_, i) => `shard-${"abcdefgh"[i]}`),
          port: basePort + 10,
        }),
      ),
    ).pipe(Layer.provide(NodeServices.layer)),
}
