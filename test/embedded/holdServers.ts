/**
 * Holds the embedded servers of a folder until it is killed: `node holdServers.ts <folder> <port>`. Prints their pids as one
 * line of JSON once they are ready, or the message of the failure.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Layer } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"

const [dataDir, port] = [process.argv[2]!, Number(process.argv[3])]

const servers = Layer.mergeAll(
  NatsServer.layer({ dataDir: `${dataDir}/nats`, port }),
  PostgresServers.layer({ dataDir, shards: 2, port: port + 1 }),
).pipe(Layer.provide(NodeServices.layer))

await Effect.gen(function* () {
  const nats = yield* NatsServer
  const { shards } = yield* PostgresServers
  yield* Console.log(JSON.stringify({ pids: [nats.pid, ...shards.map((shard) => shard.pid)] }))
  return yield* Effect.never
}).pipe(
  Effect.provide(servers),
  Effect.catch((error) => Console.log(JSON.stringify({ failed: error._tag, message: error.message }))),
  Effect.runPromise,
)
