/**
 * The logs themselves, spread over shards: appends batches and reads pages.
 *
 * `ShardPoolLive` keeps them in PostgreSQL, `layerMemory` (Memory.ts) in memory; both pass `test/shard/shardPoolContract.ts`.
 */
import { Context, Effect, Schema } from "effect"
import type { LogEntry, NewEntry, Placed, Stamp } from "../contract/LogEntry.ts"
import type { ObjectId } from "../contract/ObjectId.ts"

/** A failure that another attempt may cure: connection, deadlock, time-out, a full disk, a missing table. */
export class ShardUnavailable extends Schema.TaggedError<ShardUnavailable>()("ShardUnavailable", {
  shard: Schema.String,
  operation: Schema.String,
  /** SQLSTATE or a word such as `connection`; the label under which retries are counted. */
  reason: Schema.String,
  cause: Schema.Defect(),
}) {
  override get message(): string {
    return `shard ${this.shard}: ${this.operation} failed (${this.reason}): ${this.detail}`
  }

  /** The failure as the database, or the connection to it, told it. */
  get detail(): string {
    return this.cause instanceof Error ? this.cause.message : String(this.cause)
  }
}

/** The database refuses the data of a batch of several: another attempt with the same batch fails in the same way. */
export class BatchRejected extends Schema.TaggedError<BatchRejected>()("BatchRejected", {
  shard: Schema.String,
  /** SQLSTATE of class 22, 23 or 54. */
  sqlState: Schema.String,
  cause: Schema.Defect(),
}) {
  override get message(): string {
    return `shard ${this.shard}: batch rejected (${this.sqlState}): ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
}

/** What became of one append of a batch. */
export type AppendOutcome =
  | Placed
  /** The database refuses its data, with this SQLSTATE of class 22, 23 or 54. */
  | { readonly _tag: "Rejected"; readonly sqlState: string }

/** In a batch of one it is known which append is refused: then that is its outcome. */
export const rejectedAlone = (
  appends: number,
  error: BatchRejected,
): Effect.Effect<ReadonlyArray<AppendOutcome>, BatchRejected> =>
  appends === 1 ? Effect.succeed([{ _tag: "Rejected", sqlState: error.sqlState }]) : Effect.fail(error)

/** A read fails for a reason of its own, such as a statement that takes too long: so does another attempt, most likely. */
export class ReadRejected extends Schema.TaggedError<ReadRejected>()("ReadRejected", {
  shard: Schema.String,
  /** SQLSTATE, or `unreadable` for an answer that the client can't take. */
  reason: Schema.String,
  cause: Schema.Defect(),
}) {
  override get message(): string {
    return `shard ${this.shard}: read rejected (${this.reason}): ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
}

export type ReadOrder = "asc" | "desc" | "position"

/** What a read wants of a log. Bounds are exclusive where named `after`; a page ends at whichever bound is met first. */
export interface ReadQuery {
  readonly id: ObjectId
  readonly after: Stamp | { readonly position: number } | undefined
  /** Nanoseconds, inclusive / exclusive. */
  readonly from: bigint | undefined
  readonly to: bigint | undefined
  /** No entry beyond this position is looked at: what bounds a scan that a filter leaves nothing of. */
  readonly scanTo: number
  readonly maxEntries: number
}

/** The first pages of several reads. */
export interface FirstPagesQuery {
  readonly order: ReadOrder
  readonly reads: ReadonlyArray<ReadQuery>
  /** All pages together end with the entry that reaches this many bytes of log text. */
  readonly maxBytes: number
}

export interface FirstPage {
  /** How many entries the object has: the last position, 0 without a log. */
  readonly upTo: number
  readonly entries: ReadonlyArray<LogEntry>
  /** It ends where it does because of `maxBytes`. */
  readonly isCut: boolean
}

/** A page of one read. */
export interface PageQuery extends ReadQuery {
  readonly order: ReadOrder
  /** Only entries up to this position: what makes all pages of a read one consistent snapshot. */
  readonly upTo: number
  /** The page ends with the entry that reaches this many bytes of log text, so it always holds one entry if there is one. */
  readonly maxBytes: number
}

export interface ShardHealth {
  readonly shard: string
  readonly ok: boolean
  readonly reason: string | undefined
}

/** What has connections and waits for none of another kind. */
export const shardUses = ["append", "read"] as const

export type ShardUse = (typeof shardUses)[number]

/** How much of a shard's connections is taken at this moment. */
export interface ShardUsage extends Readonly<Record<ShardUse, Taken>> {
  readonly shard: string
}

export interface Taken {
  readonly inUse: number
  /** Operations that wait for a connection. */
  readonly waiting: number
}

export class ShardPool extends Context.Service<
  ShardPool,
  {
    /**
     * Appends a batch to the shard of that name in one transaction. The answer has one outcome for each entry, in the batch's
     * order. An entry that is already there, by identity or by message id, is not added again and gives its first place. A
     * batch of several that the database refuses fails as a whole: halved, it tells whose fault that is.
     */
    readonly append: (
      shard: string,
      batch: ReadonlyArray<NewEntry>,
    ) => Effect.Effect<ReadonlyArray<AppendOutcome>, ShardUnavailable | BatchRejected>
    /** The first page of each read, in their order, with the number of entries of its object: what both tell is one state. */
    readonly readFirstPages: (
      shard: string,
      query: FirstPagesQuery,
    ) => Effect.Effect<ReadonlyArray<FirstPage>, ShardUnavailable | ReadRejected>
    readonly readPage: (
      shard: string,
      query: PageQuery,
    ) => Effect.Effect<ReadonlyArray<LogEntry>, ShardUnavailable | ReadRejected>
    /** Asks every shard, for some seconds at most, what its work needs: is each kind of operation possible? */
    readonly health: Effect.Effect<ReadonlyArray<ShardHealth>>
    readonly usage: () => ReadonlyArray<ShardUsage>
  }
>()("objectlog/shard/ShardPool") {}
