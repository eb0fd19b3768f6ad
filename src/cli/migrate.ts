/** `objectlog migrate`: creates and migrates the tables of all shards, as who owns them; workers then need fewer rights. */
import { Effect } from "effect"
import { Command } from "effect/cli"
import { shards as readShards } from "../config/ConfigShards.ts"
import { ConfigInvalid } from "../config/ConfigValue.ts"
import { placementOf } from "../placement/guard.ts"
import { HashRing } from "../placement/HashRing.ts"
import { schemaVersion } from "../shard/migrations.ts"
import { migrateShards } from "../shard/ShardPoolLive.ts"
import { loggerLayer } from "./logging.ts"
import { printLine } from "./output.ts"

export const migrateCommand = Command.make(
  "migrate",
  {},
  Effect.fnUntraced(
    function* () {
      const shards = yield* readShards
      if (shards === undefined) {
        return yield* new ConfigInvalid({
          variable: "POSTGRES_IPS",
          value: "",
          allowed: "shards, such as host-a,host-b",
        })
      }
      const ring = yield* HashRing.make(shards)
      yield* migrateShards({ shards, placement: placementOf(ring.shards) })
      for (const { name } of shards) yield* printLine(`${name}: tables of version ${schemaVersion}, placement recorded`)
    },
    Effect.provide(loggerLayer({ logLevel: "info" })),
  ),
).pipe(Command.withDescription("create and update the tables of POSTGRES_IPS, and record the placement"))
