/** Two empty PostgreSQL servers, as the shards `a` and `b`. */
import { Context, Effect, Layer } from "effect"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import type { ShardSettings } from "../../src/shard/ShardPoolLive.ts"
import { TestPostgres } from "../embedded/testServers.ts"

export const twoServers = Effect.gen(function* () {
  const { shards } = Context.get(yield* Layer.build(TestPostgres.layer(2)), PostgresServers)
  const serverOf = (index: number, name: string) => {
    const { control, database, host, password, port, user } = shards[index]!
    const settings: ShardSettings = { name, weight: 1, host, port, user, password, database }
    return {
      settings,
      start: Effect.orDie(control.start),
      /** As a crash: no check point, connections are cut. */
      stop: control.stop("SIGQUIT"),
    }
  }
  return [serverOf(0, "a"), serverOf(1, "b")] as const
})
