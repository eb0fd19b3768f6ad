/**
 * Streams and consumers: whoever finds one missing creates it; nobody changes one that exists.
 *
 * Streams keep messages by limits, not as a work queue: an emptied work-queue stream can restart its sequence after a
 * crash of the server and starve its consumer. What is done is purged up to a margin below the consumer's ack floor.
 */
import {
  AckPolicy,
  type ConsumerConfig,
  DeliverPolicy,
  DiscardPolicy,
  type JetStreamManager,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
  type StreamInfo,
} from "@nats-io/jetstream"
import { Effect, Result, Schema } from "effect"
import { BrokerUnavailable, type ParkedKind } from "./Broker.ts"
import { ackPendingLimit, isNameInUse, isNotFound } from "./jetStreamErrors.ts"
import type { FoundStream } from "./StreamLife.ts"
import { parkedSubject, parkedTopic, retrySubject, shardToken } from "./setAside.ts"

/** A stream that exists can't serve; only its owner can decide what to do. */
export class BrokerMisconfigured extends Schema.TaggedError<BrokerMisconfigured>()("BrokerMisconfigured", {
  stream: Schema.String,
  problem: Schema.String,
}) {
  override get message(): string {
    return `stream ${this.stream}: ${this.problem}`
  }
}

export interface Topics {
  readonly logsTopic: string
  readonly queryTopic: string
  readonly responseTopic: string
  readonly deadTopic: string
  readonly replicas: number
}

/** A durable pull consumer that all workers share. */
export interface ConsumerSpec {
  /** The stream that it is on. */
  readonly part: keyof Provisioned
  readonly name: string
  readonly filter: string
  /** Deliveries that may be under way or handed back at the same time, over all workers. */
  readonly ackPendingMax: number
}

/** The consumer of an intake stream. */
export const consumerName = "objectlog"

export const intakeConsumer = (part: "logs" | "query", topics: Topics): ConsumerSpec => ({
  part,
  name: consumerName,
  filter: part === "logs" ? topics.logsTopic : topics.queryTopic,
  ackPendingMax,
})

export const parkedConsumer = (kind: ParkedKind, shard: string, { logsTopic }: Topics): ConsumerSpec => ({
  part: "parked",
  name: `${kind}_${shardToken(shard)}`,
  filter: parkedSubject(logsTopic, kind, shard),
  ackPendingMax: kind === "appends" ? ackPendingMax : parkedReadsPendingMax,
})

export const retryConsumer = ({ logsTopic }: Topics): ConsumerSpec => ({
  part: "parked",
  name: "retry",
  filter: retrySubject(logsTopic),
  ackPendingMax,
})

/** Delivered again after this long without ack, nak or `working`, in milliseconds. */
export const ackWaitMillis = 30_000

const ackPendingMax = 100_000

/** Reads of a lost shard are handed back again and again while they are parked; so many are enough to see that it is back. */
const parkedReadsPendingMax = 1_000

/** What `provision` found or made. */
export interface Provisioned {
  readonly logs: FoundStream
  readonly query: FoundStream
  readonly parked: FoundStream
}

const nanos = (millis: number) => millis * 1_000_000

export const attempt = <A>(operation: string, run: () => Promise<A>): Effect.Effect<A, BrokerUnavailable> =>
  Effect.tryPromise({ try: run, catch: (cause) => new BrokerUnavailable({ operation, cause }) })

const streamName = (topic: string) => `objectlog_${topic.replaceAll(".", "_")}`

/** A stream as it is made where it is missing. */
export type StreamSpec = Partial<StreamConfig> & { name: string; subjects: Array<string> }

const intake = (topic: string, replicas: number): StreamSpec => ({
  name: streamName(topic),
  subjects: [topic],
  storage: StorageType.File,
  retention: RetentionPolicy.Limits,
  num_replicas: replicas,
  // The least that the server takes. Its window is per stream, not per object, and a retry that it swallows would get no
  // event; the shards keep message ids for ever anyway.
  duplicate_window: nanos(100),
})

export const findStream = (
  jsm: JetStreamManager,
  subject: string,
): Effect.Effect<StreamInfo | undefined, BrokerUnavailable> =>
  attempt("find stream", async () => {
    for await (const info of jsm.streams.list(subject)) return info
    return undefined
  })

/** Whether every subject that `inner` matches is matched by `outer`. */
export const covers = (outer: string, inner: string): boolean => {
  const [out, inn] = [outer.split("."), inner.split(".")]
  for (let i = 0; i < out.length; i++) {
    if (out[i] === ">") return inn.length > i
    if (inn[i] === undefined || inn[i] === ">") return false
    if (out[i] !== "*" && out[i] !== inn[i]) return false
  }
  return out.length === inn.length
}

/** Why an existing stream can't serve, if it can't. */
export const streamProblem = (config: StreamConfig, subject: string): string | undefined => {
  // The server finds streams that overlap with a subject; one that captures a part of it stands in the way of ours.
  if (!config.subjects.some((captured) => covers(captured, subject))) {
    return `expected it to capture ${subject}, got ${config.subjects.join(", ")}`
  }
  if (config.sealed) return "is sealed, so nothing can be stored in it"
  if (config.no_ack) return "has no_ack set, so publishing to it can't be confirmed"
  if (config.retention !== RetentionPolicy.Limits) return `expected retention by limits, got ${config.retention}`
  return undefined
}

/** The stream that captures the subject, made if there is none. */
export const ensureStream = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  config: StreamSpec,
): Effect.fn.Return<FoundStream, BrokerUnavailable | BrokerMisconfigured> {
  const subject = config.subjects[0]!
  let found = yield* findStream(jsm, subject)
  if (found === undefined) {
    const created = yield* Effect.result(attempt("create stream", () => jsm.streams.add(config)))
    if (Result.isSuccess(created)) return { name: config.name, created: created.success.created }
    // Another worker may have been faster.
    found = yield* findStream(jsm, subject)
    if (found === undefined) {
      if (!isNameInUse(created.failure)) return yield* created.failure
      return yield* new BrokerMisconfigured({
        stream: config.name,
        problem: `exists and does not capture ${subject}`,
      })
    }
  }
  const { name } = found.config
  const problem = streamProblem(found.config, subject)
  if (problem !== undefined) return yield* new BrokerMisconfigured({ stream: name, problem })
  return { name, created: found.created }
})

/** Why an existing consumer can't serve, if it can't: it would skip or drop requests. */
export const consumerProblem = (config: ConsumerConfig, filter: string): string | undefined => {
  const filters = config.filter_subjects ?? (config.filter_subject === undefined ? [] : [config.filter_subject])
  if (config.deliver_subject !== undefined) return "expected a pull consumer, got a push consumer"
  if (config.ack_policy !== AckPolicy.Explicit) return `expected explicit acknowledgement, got ${config.ack_policy}`
  if (config.deliver_policy !== DeliverPolicy.All) {
    return `expected delivery of all messages, got ${config.deliver_policy}, which skips some`
  }
  if ((config.max_deliver ?? -1) > 0) return `expected deliveries without limit, got ${config.max_deliver} at most`
  if (filters.length > 0 && (filters.length > 1 || filters[0] !== filter)) {
    return `expected the filter ${filter}, got ${filters.join(", ")}`
  }
  if (config.headers_only === true) return "expected whole messages, got headers_only"
  return undefined
}

/** The consumer, where there is one. */
export const findConsumer = (jsm: JetStreamManager, stream: string, name: string) =>
  attempt("find consumer", () => jsm.consumers.info(stream, name)).pipe(
    Effect.catchIf(isNotFound, () => Effect.undefined),
  )

/** Finds or creates a consumer; gives it as it is. */
export const ensureConsumer = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  stream: string,
  { name, filter, ackPendingMax: ackPending }: Omit<ConsumerSpec, "part">,
): Effect.fn.Return<ConsumerConfig, BrokerUnavailable | BrokerMisconfigured> {
  const create = (ackPendingMax: number) =>
    attempt("create consumer", () =>
      jsm.consumers.add(stream, {
        durable_name: name,
        ack_policy: AckPolicy.Explicit,
        deliver_policy: DeliverPolicy.All,
        ack_wait: nanos(ackWaitMillis),
        max_deliver: -1,
        max_ack_pending: ackPendingMax,
        filter_subject: filter,
      }),
    )
  const make = create(ackPending).pipe(
    Effect.catchIf(
      (error) => ackPendingLimit(error) !== undefined,
      (error) => {
        const limit = ackPendingLimit(error)!
        const line = `stream ${stream}: the broker allows the consumer ${name} only ${limit} unacknowledged deliveries of ${ackPending}: a slow shard may hold up the others; raise its limit max_ack_pending`
        return Effect.tap(create(limit), Effect.logWarning(line))
      },
    ),
  )
  // Another worker may be faster; if not, why it can't be made is what has to be known.
  const madeOrFound = Effect.catch(make, (failure) =>
    Effect.filterOrFail(
      findConsumer(jsm, stream, name),
      (other) => other !== undefined,
      () => failure,
    ),
  )
  const { config } = (yield* findConsumer(jsm, stream, name)) ?? (yield* madeOrFound)
  const problem = consumerProblem(config, filter)
  if (problem === undefined) return config
  return yield* new BrokerMisconfigured({ stream, problem: `consumer ${name}: ${problem}` })
})

/** The streams that a worker uses. */
export const streamSpecs = ({ deadTopic, logsTopic, queryTopic, replicas, responseTopic }: Topics) => ({
  logs: intake(logsTopic, replicas),
  query: intake(queryTopic, replicas),
  response: {
    name: streamName(responseTopic),
    subjects: [responseTopic, `${responseTopic}.>`],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    num_replicas: replicas,
    discard: DiscardPolicy.Old,
    max_age: nanos(24 * 3_600_000),
    max_bytes: 1024 ** 3,
    duplicate_window: nanos(120_000),
  },
  dead: {
    name: streamName(deadTopic),
    subjects: [`${deadTopic}.>`],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    num_replicas: replicas,
    duplicate_window: nanos(120_000),
  },
  parked: {
    name: streamName(parkedTopic(logsTopic)),
    subjects: [`${parkedTopic(logsTopic)}.>`],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    num_replicas: replicas,
    duplicate_window: nanos(120_000),
  },
})

export type StreamPart = keyof ReturnType<typeof streamSpecs>

/** Finds or creates everything that a worker needs. */
export const provision = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  topics: Topics,
): Effect.fn.Return<Provisioned, BrokerUnavailable | BrokerMisconfigured> {
  const specs = streamSpecs(topics)
  const logs = yield* ensureStream(jsm, specs.logs)
  const query = yield* ensureStream(jsm, specs.query)
  yield* ensureStream(jsm, specs.response)
  yield* ensureStream(jsm, specs.dead)
  const parked = yield* ensureStream(jsm, specs.parked)
  yield* ensureConsumer(jsm, logs.name, intakeConsumer("logs", topics))
  yield* ensureConsumer(jsm, query.name, intakeConsumer("query", topics))
  return { logs, query, parked }
})

/** All consumers of a stream. The server tells of them in pages of 256, and the parked stream has two for each shard. */
export const listConsumers = (jsm: JetStreamManager, stream: string) =>
  attempt("list consumers", () => Array.fromAsync(jsm.consumers.list(stream)))

/** Others may look at the stream with consumers of their own. */
export const isParkedConsumer = (name: string): boolean => /^(?:retry$|appends_|reads_)/.test(name)
