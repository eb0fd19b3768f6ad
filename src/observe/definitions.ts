/**
 * Every metric of the service: name, type, meaning and labels. `docs/metrics.md` explains them; a test compares both.
 *
 * Labels are bounded: a shard is one of the configured ones, all others come from closed sets. Never an object id.
 */
import { operations } from "../broker/Broker.ts"
import { errorCodes } from "../contract/ErrorCode.ts"
import { shardUses } from "../shard/ShardPool.ts"

/** Kinds of requests; the value of every `subject` label, whatever the topics are called. */
export const subjects = ["append", "query"] as const

export type Subject = (typeof subjects)[number]

/** The word for a failure that has none of its own. */
const otherReason = "other"

/**
 * Reasons of a retry: words of our own, and the SQLSTATEs of faults that an operator has to tell apart. A database can
 * raise any SQLSTATE, so that every other one is counted as `other`; the log has it in full.
 */
const retryReasons = [
  "connection",
  "timeout",
  "pool",
  "unverified",
  "placement",
  "schema",
  "version",
  "encoding",
  "pooler",
  "settings",
  "unknown",
  "publish",
  "dead letter",
  "park",
  // No room for more of them.
  "full",
  // In recovery or read-only; wrong password or role; no such database.
  "25006",
  "28000",
  "28P01",
  "3D000",
  // Serialisation failure, deadlock.
  "40001",
  "40P01",
  // Missing rights, table or schema.
  "42501",
  "42P01",
  "3F000",
  // Disk or memory full, too many connections.
  "53100",
  "53200",
  "53300",
  // Lock time-out, statement time-out, shutdown, crash, start-up.
  "55P03",
  "57014",
  "57P01",
  "57P02",
  "57P03",
  otherReason,
] as const

const known: ReadonlySet<string> = new Set(retryReasons)

export type RetryReason = (typeof retryReasons)[number]

const isKnown = (reason: string): reason is RetryReason => known.has(reason)

/** The label for a reason: itself where it is known. */
export const retryReason = (reason: string): RetryReason => (isKnown(reason) ? reason : otherReason)

/** What retries: an append transaction, a read, an event or page, a dead letter. */
export const retryParts = ["append", "read", "publish", "dead letter", "park"] as const

export type RetryPart = (typeof retryParts)[number]

/** Stands for "one of the configured shards". */
export const perShard = "shard"

interface Definition {
  readonly help: string
  /** For each label the values that it can have. */
  readonly labels: Readonly<Record<string, ReadonlyArray<string> | typeof perShard>>
}

interface HistogramDefinition extends Definition {
  /** Upper bounds of the buckets, rising; the one without a bound is added. */
  readonly bounds: ReadonlyArray<number>
}

/** From a statement on a warm cache to one that the statement time-out ends. */
const transactionBounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]

/** From an idle service to an outage of half an hour. */
const delayBounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800]

export const counters = {
  messages_total: {
    help: "Requests finished: answered and acknowledged. The outcome is ok or the error code.",
    labels: { subject: subjects, outcome: ["ok", ...errorCodes] },
  },
  redeliveries_total: {
    help: "Deliveries that were not the first of their request.",
    labels: { subject: subjects },
  },
  append_batches_total: {
    help: "Append transactions committed whose events are confirmed.",
    labels: { shard: perShard },
  },
  appended_entries_total: {
    help: "Appends committed, or found committed, and confirmed.",
    labels: { shard: perShard },
  },
  entries_read_total: { help: "Entries sent in pages.", labels: { shard: perShard } },
  pages_sent_total: { help: "Pages sent and confirmed.", labels: { shard: perShard } },
  handed_back_total: {
    help: "Requests handed back to the broker, to be delivered again.",
    labels: { shard: perShard },
  },
  parked_total: {
    help: "Requests parked for a shard that takes none.",
    labels: { shard: perShard, kind: ["appends", "reads"] },
  },
  retries_total: {
    help: "Attempts that failed for a reason that another attempt may cure.",
    labels: { part: retryParts, reason: retryReasons },
  },
  permission_violations_total: {
    help: "Operations that the broker refused for lack of a right.",
    labels: { operation: operations },
  },
  dead_letters_total: { help: "Requests refused and kept as dead letters.", labels: { code: errorCodes } },
} as const satisfies Record<string, Definition>

export const gauges = {
  lane_entries: {
    help: "Appends in the lane of a shard: waiting, in a transaction, or waiting for their events to be confirmed.",
    labels: { shard: perShard },
  },
  lane_up: {
    help: "1 while the lane commits, 0 while its transaction is being repeated because the shard fails.",
    labels: { shard: perShard },
  },
  shard_up: {
    help: "1 if the shard could be appended to and read from when it was last asked, at most a few seconds ago.",
    labels: { shard: perShard },
  },
  broker_storing: {
    help: "1 while the broker stores what the worker sends, 0 while it has no room or confirms nothing although it is connected.",
    labels: {},
  },
  consumer_pending: {
    help: "Requests in the broker that were not delivered yet. NaN while the broker can't be asked.",
    labels: { subject: subjects },
  },
  consumer_ack_pending: {
    help: "Requests delivered, to any worker, and neither acknowledged nor given up. NaN while the broker can't be asked.",
    labels: { subject: subjects },
  },
  consumer_ack_floor: {
    help: "Stream sequence number up to which every request is acknowledged. NaN while the broker can't be asked.",
    labels: { subject: subjects },
  },
  pool_connections_in_use: {
    help: "Connections to the shard that appends or reads use.",
    labels: { shard: perShard, use: shardUses },
  },
  pool_waiting: {
    help: "Appends or reads that wait for a connection to the shard.",
    labels: { shard: perShard, use: shardUses },
  },
} as const satisfies Record<string, Definition>

export const histograms = {
  append_batch_entries: {
    help: "Entries in a committed append transaction.",
    labels: { shard: perShard },
    bounds: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 4_000],
  },
  append_transaction_seconds: {
    help: "Time of an append transaction that was committed, from asking for a connection on.",
    labels: { shard: perShard },
    bounds: transactionBounds,
  },
  append_delay_seconds: {
    help: "From the broker's timestamp of an append to the confirmation of its event.",
    labels: {},
    bounds: delayBounds,
  },
  query_delay_seconds: {
    help: "From the broker's timestamp of a read to the confirmation of its last page.",
    labels: {},
    bounds: delayBounds,
  },
} as const satisfies Record<string, HistogramDefinition>

type LabelsOf<D extends Definition> = {
  readonly [Label in keyof D["labels"]]: D["labels"][Label] extends ReadonlyArray<infer Value extends string>
    ? Value
    : string
}

export type CounterName = keyof typeof counters
export type GaugeName = keyof typeof gauges
export type HistogramName = keyof typeof histograms

export type CounterLabels<Name extends CounterName> = LabelsOf<(typeof counters)[Name]>
export type GaugeLabels<Name extends GaugeName> = LabelsOf<(typeof gauges)[Name]>
export type HistogramLabels<Name extends HistogramName> = LabelsOf<(typeof histograms)[Name]>
