/** Keeps the streams small, and sees to it that no consumer is ahead of its stream. */
import type { ConsumerInfo, JetStreamManager, StreamInfo } from "@nats-io/jetstream"
import { Effect } from "effect"
import type { BrokerUnavailable } from "./Broker.ts"
import { consumerProblem } from "./consumerRules.ts"
import {
  attempt,
  BrokerMisconfigured,
  findStream,
  intakeConsumer,
  isParkedConsumer,
  listConsumers,
  streamSubjects,
  type Topics,
} from "./provision.ts"
import { consumerName } from "../contract/Topics.ts"
import { type PurgedRole, type StreamRole, streamProblem } from "./streamRules.ts"

/** Done messages that are kept below the ack floor: for a look back, and for a database that is restored a little older. */
export interface Margin {
  readonly messages: number
  readonly bytes: number
}

/**
 * The margin gives way before the broker's store is full: it is bounded in bytes too, and by a share of what the account may
 * store where the server tells that.
 */
export const margin = (role: PurgedRole, maxStorage: number): Margin => ({
  messages: role === "logs" ? 10_000 : 1_000,
  bytes: Math.min(64 * 1024 ** 2, maxStorage > 0 ? maxStorage / 16 : Infinity),
})

export const noMargin: Margin = { messages: 0, bytes: 0 }

/**
 * How many messages the margin holds. The server tells neither the size of a message nor of a part of a stream, so it goes by
 * a mean: of the whole stream, which is exact while there is no backlog, or, where that is larger, of what this worker took
 * last, which is what the margin is made of. So the margin exceeds its bytes by what was taken since the upkeep before, and by
 * itself once more where the messages became smaller in between.
 */
export const marginMessages = ({ bytes, messages }: Margin, { state }: StreamInfo, takenMean: number): number =>
  Math.min(messages, Math.floor(bytes / Math.max(1, takenMean, state.bytes / Math.max(1, state.messages))))

/**
 * A consumer that is ahead of its stream skips everything up to where it is, without a word. That happens when the stream
 * lost its messages and its count and the consumer did not: a disk that was restored, a file that was lost. It is deleted,
 * and whoever pulls makes it again, from the first message; what is stored already is found by its stamp.
 */
const isAhead = (consumer: ConsumerInfo, stream: StreamInfo): boolean =>
  Math.max(consumer.ack_floor.stream_seq, consumer.delivered.stream_seq) > stream.state.last_seq

const resetIfAhead = Effect.fnUntraced(function* (jsm: JetStreamManager, stream: StreamInfo, consumer: ConsumerInfo) {
  if (!isAhead(consumer, stream)) return false
  const { name } = stream.config
  yield* Effect.logWarning(
    `stream ${name}: consumer ${consumer.name} is at ${consumer.delivered.stream_seq}, beyond the last message ${stream.state.last_seq}; it begins anew`,
  )
  yield* attempt("delete consumer", () => jsm.consumers.delete(name, consumer.name))
  return true
})

/** Deletes a consumer that is ahead of its stream; whether it was. */
export const resetAhead = Effect.fnUntraced(function* (jsm: JetStreamManager, name: string, consumerName: string) {
  const consumer = yield* attempt("consumer info", () => jsm.consumers.info(name, consumerName))
  const stream = yield* attempt("stream info", () => jsm.streams.info(name))
  return yield* resetIfAhead(jsm, stream, consumer)
})

/** A stream, and the number of the message up to which all is done in it: 0 where that is not known. */
interface Done {
  readonly stream: StreamInfo
  readonly upTo: number
}

type Looked = Effect.fn.Return<Done, BrokerUnavailable | BrokerMisconfigured>

const doneOfIntake = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  topics: Topics,
  role: "logs" | "query",
  name: string,
): Looked {
  const consumer = yield* attempt("consumer info", () => jsm.consumers.info(name, consumerName))
  // Asked for after the consumer, so that the stream can only be further.
  const stream = yield* attempt("stream info", () => jsm.streams.info(name))
  const problem = consumerProblem(consumer.config, intakeConsumer(role, topics).filter)
  if (problem !== undefined) {
    return yield* new BrokerMisconfigured({ stream: name, problem: `consumer ${consumerName}: ${problem}` })
  }
  const isReset = yield* resetIfAhead(jsm, stream, consumer)
  return { stream, upTo: isReset ? 0 : consumer.ack_floor.stream_seq }
})

/**
 * The parked stream has a consumer for each subject. It is purged as a whole, below the first message that any of them has
 * not done, and never by subject: a purge with a filter makes nats-server 2.9 drop everything from the consumer of that
 * subject that is delivered and not acknowledged, as if it were done. So one shard that is lost holds up the purge of all.
 */
const doneOfParked = Effect.fnUntraced(function* (jsm: JetStreamManager, name: string): Looked {
  const consumers = (yield* listConsumers(jsm, name)).filter((consumer) => isParkedConsumer(consumer.name))
  const stream = yield* attempt("stream info", () => jsm.streams.info(name, { subjects_filter: ">" }))
  const filters = new Set(consumers.map((consumer) => consumer.config.filter_subject))
  // A consumer that is lost has yet to be made again; nobody knows what it has not done.
  if (Object.keys(stream.state.subjects ?? {}).some((subject) => !filters.has(subject))) return { stream, upTo: 0 }
  let upTo = stream.state.last_seq
  for (const consumer of consumers) {
    if (yield* resetIfAhead(jsm, stream, consumer)) return { stream, upTo: 0 }
    // The client's type knows only requests for the last message of a subject, not for the next.
    const query = { seq: consumer.ack_floor.stream_seq + 1, next_by_subj: consumer.config.filter_subject ?? ">" }
    const open = yield* attempt("next message", () => jsm.streams.getMessage(name, query))
    if (open !== null) upTo = Math.min(upTo, open.seq - 1)
  }
  return { stream, upTo }
})

const checked = (
  role: StreamRole,
  { config }: StreamInfo,
  topics: Topics,
): Effect.Effect<void, BrokerMisconfigured> => {
  const problem = streamProblem(role, config, streamSubjects(topics))
  return problem === undefined ? Effect.void : Effect.fail(new BrokerMisconfigured({ stream: config.name, problem }))
}

/** Fails where a stream is no longer what it has to be: its owner may change it at any time. */
export const ensureRules = Effect.fnUntraced(function* (jsm: JetStreamManager, topics: Topics, role: StreamRole) {
  const found = yield* findStream(jsm, streamSubjects(topics)[role][0]!)
  if (found !== undefined) yield* checked(role, found, topics)
})

/**
 * Fails where a stream can't be written any more, although its server answers: one that met a full disk refuses from then on
 * to purge even what is gone already. nats-server 2.9 would read a block of messages for that, and hangs anyway.
 */
export const ensureWritable = Effect.fnUntraced(function* (jsm: JetStreamManager, name: string) {
  const { first_seq: seq } = (yield* attempt("stream info", () => jsm.streams.info(name))).state
  // A purge up to 1 would be one of everything.
  if (seq >= 2) yield* attempt("purge", () => jsm.streams.purge(name, { seq }))
})

/**
 * Purges what every worker is done with, but for the margin and the last one: a stream that was emptied may lose its count
 * with the next crash of the server. Gives how many messages went. Nothing is purged from a stream that its owner has changed
 * so that it is no longer ours alone.
 */
export const purgeDone = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  topics: Topics,
  role: PurgedRole,
  name: string,
  kept: Margin,
  takenMean: number,
): Effect.fn.Return<number, BrokerUnavailable | BrokerMisconfigured> {
  const { stream, upTo } = yield* role === "parked" ? doneOfParked(jsm, name) : doneOfIntake(jsm, topics, role, name)
  yield* checked(role, stream, topics)
  const seq = upTo - marginMessages(kept, stream, takenMean)
  if (seq <= stream.state.first_seq) return 0
  return (yield* attempt("purge", () => jsm.streams.purge(name, { seq }))).purged
})
