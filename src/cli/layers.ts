/** The live layers of a worker, put together from the settings. */
import { Effect, Layer, Redacted } from "effect"
import { NatsLive } from "../broker/NatsLive.ts"
import type { Settings } from "../config/Config.ts"
import { MetricsLive } from "../observe/Metrics.ts"
import { placementOf } from "../placement/guard.ts"
import { HashRing } from "../placement/HashRing.ts"
import type { ShardSettings } from "../config/ConfigShards.ts"
import { ShardPoolLive } from "../shard/ShardPoolLive.ts"

export interface Servers {
  /** Server list; may carry credentials. */
  readonly nats: Redacted.Redacted
  readonly shards: ReadonlyArray<ShardSettings>
}

/** `Broker`, `HashRing`, `ShardPool` and `Metrics`, connected to these servers. */
export const workerLayers = (settings: Settings, servers: Servers) =>
  Layer.unwrap(
    Effect.map(HashRing.make(servers.shards), (ring) =>
      Layer.mergeAll(
        NatsLive({
          servers: Redacted.value(servers.nats),
          logsTopic: settings.topics.logs,
          queryTopic: settings.topics.query,
          responseTopic: settings.topics.response,
          deadTopic: settings.topics.dead,
          replicas: settings.replicas,
          connectionName: "objectlog worker",
          shards: servers.shards.length,
        }),
        Layer.succeed(HashRing, ring),
        ShardPoolLive({
          shards: servers.shards,
          autoMigrate: settings.autoMigrate,
          placement: placementOf(ring.shards),
        }),
        MetricsLive(ring.shards.map((shard) => shard.name)),
      ),
    ),
  )
