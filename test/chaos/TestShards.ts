/** The shards of a run: three PostgreSQL servers, the last one on a disk that can be filled where that is possible. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Context, Effect, Layer, Path } from "effect"
import { type EmbeddedShard, PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { HashRing } from "../../src/placement/HashRing.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { temporary } from "../../bench/servers/privateServers.ts"
import { ports } from "./ports.ts"
import { mountSmallDisk, type SmallDisk } from "./SmallDisk.ts"

const names = ["shard-a", "shard-b", "shard-c"]

/** The role of the workers, which is not that of the run: it can be locked out. */
export const workerRole = { name: "worker", password: "worker" }
const onSmallDisk = 2

const make = Effect.fnUntraced(function* (diskMegabytes: number) {
  const path = yield* Path.Path
  const dataDir = yield* temporary
  const disk = yield* mountSmallDisk(path.join(dataDir, names[onSmallDisk]!), diskMegabytes)
  const context = yield* Layer.build(PostgresServers.layer({ dataDir, shards: names, port: ports.shards }))
  const { shards } = Context.get(context, PostgresServers)
  // By default the write-ahead log may take a gigabyte, which is more than the disk has.
  yield* onShard(shards[onSmallDisk]!, (sql) =>
    Effect.andThen(sql`alter system set max_wal_size = '64MB'`, sql`select pg_reload_conf()`),
  )
  yield* Effect.forEach(shards, (shard) =>
    onShard(shard, (sql) =>
      Effect.andThen(
        sql`create role ${sql(workerRole.name)} login password ${sql.literal(`'${workerRole.password}'`)}`,
        sql`grant create on schema public to ${sql(workerRole.name)}`,
      ),
    ),
  )
  const ring = yield* HashRing.make(names.map((name) => ({ name })))
  return TestShards.of({
    shards,
    shardOf: (id) => names.indexOf(ring.shardOf(id)),
    logFiles: names.map((name) => path.join(dataDir, `${name}.log`)),
    smallDisk: "skipped" in disk ? disk : { ...disk, shard: onSmallDisk },
  })
})

export class TestShards extends Context.Service<
  TestShards,
  {
    readonly shards: ReadonlyArray<EmbeddedShard>
    /** The index of the shard that has an id. */
    readonly shardOf: (id: bigint) => number
    readonly logFiles: ReadonlyArray<string>
    /** The disk and the index of the shard on it, or why there is none. */
    readonly smallDisk: (SmallDisk & { readonly shard: number }) | { readonly skipped: string }
  }
>()("test/chaos/TestShards") {
  static readonly layer = (options: { readonly diskMegabytes: number }) =>
    Layer.effect(TestShards, make(options.diskMegabytes)).pipe(Layer.provide(NodeServices.layer))
}
