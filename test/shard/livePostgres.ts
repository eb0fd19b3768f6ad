/** Two empty databases, each on a server of its own, as the shards `a` and `b`. */
import { PgClient } from "@effect/sql-pg"
import { Effect, Layer } from "effect"
import { Reactivity } from "effect/reactivity"
import { type EmbeddedShard, PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { placementOf } from "../../src/placement/guard.ts"
import type { ShardSettings } from "../../src/config/ConfigShards.ts"
import { ShardPool } from "../../src/shard/ShardPool.ts"
import { ShardPoolLive } from "../../src/shard/ShardPoolLive.ts"
import { onShard } from "../../bench/servers/onShard.ts"

/** A connection of its own, past the pool. */
export const clientOf = ({ database, host, password, port, user }: ShardSettings) =>
  PgClient.make({ host, port, database, username: user, password, maxConnections: 1 }).pipe(
    Effect.provide(Reactivity.layer),
  )

let databases = 0

const shardOn = Effect.fnUntraced(function* (server: EmbeddedShard, name: string, database: string, options = "") {
  const { control, host, password, port, user } = server
  yield* onShard(server, (sql) => sql`create database ${sql(database)} ${sql.literal(options)}`)
  const settings: ShardSettings = { name, weight: 1, host, port, user, password, database }
  return {
    settings,
    start: Effect.orDie(control.start),
    /** As a crash: no check point, connections are cut. */
    stop: control.stop("SIGQUIT"),
  }
})

/** New ones each time, on the servers of the test. */
export const twoShards = Effect.gen(function* () {
  const { shards } = yield* PostgresServers
  const database = `test_${++databases}`
  return yield* Effect.all([shardOn(shards[0]!, "a", database), shardOn(shards[1]!, "b", database)])
})

/** One new empty database, made with these options, on the first server, as the shard `a`. */
export const oneShardWith = Effect.fnUntraced(function* (options: string) {
  const { shards } = yield* PostgresServers
  return (yield* shardOn(shards[0]!, "a", `test_${++databases}`, options)).settings
})

export const oneShard = oneShardWith("")

/** A pool that has started on these shards. */
export const poolOn = Effect.fnUntraced(function* (shards: ReadonlyArray<ShardSettings>, autoMigrate = true) {
  const layer = ShardPoolLive({ shards, autoMigrate, placement: placementOf(shards) })
  return yield* Effect.provide(ShardPool, yield* Layer.build(Layer.fresh(layer)))
})
