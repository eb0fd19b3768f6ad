/** Real servers for a test: in a folder of their own, on free ports, gone with the scope. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem, Layer } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"

/** Test files run side by side: each process looks for free ports in a range of its own. */
const basePort = 20_000 + (process.pid % 400) * 50

const temporary = Effect.flatMap(FileSystem.FileSystem, (fs) =>
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
