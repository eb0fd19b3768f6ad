/** A database that cannot be a shard until somebody changes it, or what is in front of it: stops the start. */
import { Schema } from "effect"

export class ShardUnsuitable extends Schema.TaggedError<ShardUnsuitable>()("ShardUnsuitable", {
  shard: Schema.String,
  address: Schema.String,
  /** The label under which a refusal is counted where it is found later. */
  reason: Schema.Literals(["version", "encoding", "schema", "pooler"]),
  /** What is wrong, and what to do. */
  problem: Schema.String,
}) {
  override get message(): string {
    return `shard ${this.shard} at ${this.address} ${this.problem}`
  }
}
