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
import { consumerProblem, type ConsumerSpec } from "./consumerRules.ts"
import { ackWaitMillis } from "./intakeLimits.ts"
import { ackPendingLimit, isNameInUse, isNotFound, lacksRoom } from "../nats/jetStreamErrors.ts"
import { consumerName, parkedTopic } from "../contract/Topics.ts"
import { parkedSubject, retrySubject, shardToken } from "./parked.ts"
import type { FoundStream } from "./StreamLife.ts"
import { type StreamRole, streamRoles, streamProblem, streamRemarks, type StreamSubjects } from "./streamRules.ts"

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

export const intakeConsumer = (role: "logs" | "query", topics: Topics): ConsumerSpec => ({
  role,
  name: consumerName,
  filter: role === "logs" ? topics.logsTopic : topics.queryTopic,
  ackPendingMax,
})

export const parkedConsumer = (kind: ParkedKind, shard: string, { logsTopic }: Topics): ConsumerSpec => ({
  role: "parked",
  name: `${kind}_${shardToken(shard)}`,
  filter: parkedSubject(logsTopic, kind, shard),
  ackPendingMax: kind === "appends" ? ackPendingMax : parkedReadsPendingMax,
})

export const retryConsumer = ({ logsTopic }: Topics): ConsumerSpec => ({
  role: "parked",
  name: "retry",
  filter: retrySubject(logsTopic),
  ackPendingMax,
})

const ackPendingMax = 100_000

/** Reads of a lost shard are handed back again and again while they are parked; so many are enough to see that it is back. */
const parkedReadsPendingMax = 1_000

/** The streams that `provision` found or made. */
export type Provisioned = Record<StreamRole, FoundStream>

const nanos = (millis: number) => millis * 1_000_000

export const attempt = <A>(operation: string, run: () => Promise<A>): Effect.Effect<A, BrokerUnavailable> =>
  Effect.tryPromise({ try: run, catch: (cause) => new BrokerUnavailable({ operation, cause }) })

export const streamName = (topic: string) => `objectlog_${topic.replaceAll(".", "_")}`

/** What each stream captures. */
export const streamSubjects = ({ deadTopic, logsTopic, queryTopic, responseTopic }: Topics): StreamSubjects => ({
  logs: [logsTopic],
  query: [queryTopic],
  parked: [`${parkedTopic(logsTopic)}.>`],
  response: [responseTopic, `${responseTopic}.>`],
  dead: [`${deadTopic}.>`],
})

type NewStream = Partial<StreamConfig> & { readonly name: string; readonly subjects: Array<string> }

/** What a stream is made as where there is none. */
const newStream = (role: StreamRole, topics: Topics): NewStream => {
  const { deadTopic, logsTopic, queryTopic, replicas, responseTopic } = topics
  const topic = {
    logs: logsTopic,
    query: queryTopic,
    parked: parkedTopic(logsTopic),
    response: responseTopic,
    dead: deadTopic,
  }
  const isIntake = role === "logs" || role === "query"
  return {
    name: streamName(topic[role]),
    subjects: [...streamSubjects(topics)[role]],
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    num_replicas: replicas,
    // Of the intakes the least that the server takes. Its window is per stream, not per object, and a retry that it swallows
    // would get no event; the shards keep message ids for ever anyway.
    duplicate_window: nanos(isIntake ? 100 : 120_000),
    ...(role === "response" ? { discard: DiscardPolicy.Old, max_age: nanos(24 * 3_600_000) } : {}),
  }
}

/**
 * Bytes of events that are kept, at most. The server sets them aside when it makes the stream, and finds the stream again
 * only while it has that much: so it is less where it has less.
 */
const eventsBytes = { most: 1024 ** 3, least: 32 * 1024 ** 2 }

const mebibytes = (bytes: number) => `${bytes / 1024 ** 2} MiB`

/** What to do about a stream that the server has no room for. */
const advised =
  ({ max_bytes, name }: NewStream) =>
  (failure: BrokerUnavailable): BrokerUnavailable => {
    if (!lacksRoom(failure)) return failure
    const { cause, operation } = failure
    const wanted = max_bytes === undefined ? "" : ` to set ${max_bytes} bytes aside`
    const reason = cause instanceof Error ? cause.message : String(cause)
    const advice = "free disk space, or raise max_file_store or the account's max_storage"
    return new BrokerUnavailable({
      operation,
      cause: new Error(`${name}: the server has no room${wanted} (${reason}); ${advice}`),
    })
  }

const addStream = (jsm: JetStreamManager, config: NewStream): Effect.Effect<StreamInfo, BrokerUnavailable> =>
  attempt("create stream", () => jsm.streams.add(config))

/** The stream of the events, as large as the server allows. */
const addResponse = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  config: NewStream,
): Effect.fn.Return<StreamInfo, BrokerUnavailable> {
  for (let size = eventsBytes.most; ; size /= 2) {
    const sized = { ...config, max_bytes: size }
    const made = yield* Effect.result(addStream(jsm, sized))
    if (Result.isFailure(made)) {
      if (size > eventsBytes.least && lacksRoom(made.failure)) continue
      return yield* advised(sized)(made.failure)
    }
    if (size === eventsBytes.most) return made.success
    // It is more than half of what the server has, which is there for requests in the first place.
    const taken = Math.max(size / 2, eventsBytes.least)
    yield* Effect.logWarning(
      `stream ${config.name}: the server has no room to set ${mebibytes(eventsBytes.most)} aside, so the last ${mebibytes(taken)} of events are kept`,
    )
    return yield* attempt("update stream", () => jsm.streams.update(config.name, { max_bytes: taken }))
  }
})

export const findStream = (
  jsm: JetStreamManager,
  subject: string,
): Effect.Effect<StreamInfo | undefined, BrokerUnavailable> =>
  attempt("find stream", async () => {
    for await (const info of jsm.streams.list(subject)) return info
    return undefined
  })

/**
 * Before a stream that was there is made again. nats-server 2.9 deletes a stream's files after its name is free: one that is
 * made meanwhile loses what it has confirmed, and nobody hears of it.
 */
const deletionMillis = 2_000

/** The stream of a part, made if there is none that captures its subject; at once where it was `never` there, as at the start. */
export const ensureStream = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  role: StreamRole,
  topics: Topics,
  before: "never" | "there",
): Effect.fn.Return<FoundStream, BrokerUnavailable | BrokerMisconfigured> {
  const wanted = newStream(role, topics)
  const subject = wanted.subjects[0]!
  let found = yield* findStream(jsm, subject)
  if (found === undefined && before === "there") {
    yield* Effect.sleep(deletionMillis)
    found = yield* findStream(jsm, subject)
  }
  if (found === undefined) {
    const create = role === "response" ? addResponse(jsm, wanted) : addStream(jsm, wanted)
    const created = yield* Effect.result(Effect.mapError(create, advised(wanted)))
    if (Result.isSuccess(created)) return { name: wanted.name, created: created.success.created }
    // Another worker may have been faster.
    found = yield* findStream(jsm, subject)
    if (found === undefined) {
      if (!isNameInUse(created.failure)) return yield* created.failure
      return yield* new BrokerMisconfigured({
        stream: wanted.name,
        problem: `exists and does not capture ${subject}`,
      })
    }
  }
  const { name } = found.config
  const problem = streamProblem(role, found.config, streamSubjects(topics))
  if (problem !== undefined) return yield* new BrokerMisconfigured({ stream: name, problem })
  return { name, created: found.created }
})

/** Says what an operator should know of streams that were made by somebody else. */
export const remarkOnStreams = (jsm: JetStreamManager, topics: Topics): Effect.Effect<void> =>
  Effect.forEach(
    streamRoles,
    Effect.fnUntraced(function* (role) {
      const found = yield* findStream(jsm, streamSubjects(topics)[role][0]!)
      if (found === undefined) return
      for (const remark of streamRemarks(role, found.config, topics.replicas)) {
        yield* Effect.logWarning(`stream ${found.config.name}: ${remark}`)
      }
    }),
    { discard: true },
  ).pipe(Effect.catch((error) => Effect.logDebug(error.message)))

/** The consumer, where there is one. */
export const findConsumer = (jsm: JetStreamManager, stream: string, name: string) =>
  attempt("find consumer", () => jsm.consumers.info(stream, name)).pipe(
    Effect.catchIf(isNotFound, () => Effect.undefined),
  )

/** Finds or creates a consumer; gives it as it is. */
export const ensureConsumer = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  stream: string,
  { name, filter, ackPendingMax: ackPending }: Omit<ConsumerSpec, "role">,
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

/** Finds or creates everything that a worker needs. */
export const provision = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  topics: Topics,
): Effect.fn.Return<Provisioned, BrokerUnavailable | BrokerMisconfigured> {
  const found = {
    logs: yield* ensureStream(jsm, "logs", topics, "never"),
    query: yield* ensureStream(jsm, "query", topics, "never"),
    response: yield* ensureStream(jsm, "response", topics, "never"),
    dead: yield* ensureStream(jsm, "dead", topics, "never"),
    parked: yield* ensureStream(jsm, "parked", topics, "never"),
  }
  yield* ensureConsumer(jsm, found.logs.name, intakeConsumer("logs", topics))
  yield* ensureConsumer(jsm, found.query.name, intakeConsumer("query", topics))
  return found
})

/** All consumers of a stream. The server tells of them in pages of 256, and the parked stream has two for each shard. */
export const listConsumers = (jsm: JetStreamManager, stream: string) =>
  attempt("list consumers", () => Array.fromAsync(jsm.consumers.list(stream)))

/** Others may look at the stream with consumers of their own. */
export const isParkedConsumer = (name: string): boolean => /^(?:retry$|appends_|reads_)/.test(name)
