/** Keeps the streams small, and sees to it that no consumer is ahead of its stream. */
import type { ConsumerInfo, JetStreamManager, StreamInfo } from "@nats-io/jetstream"
import { Effect } from "effect"
import { attempt, consumerName, isParkedConsumer, listConsumers, type Provisioned } from "./provision.ts"

/** Done messages kept below the ack floor: for a look back, and for a database that is restored a little older. */
const purgeMargin = { logs: 10_000, query: 1_000, parked: 1_000 }

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

/** Purges what every worker is done with, but for the margin. */
export const maintain = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  streams: Record<keyof Provisioned, string>,
) {
  for (const part of ["logs", "query"] as const) {
    const name = streams[part]
    const consumer = yield* attempt("consumer info", () => jsm.consumers.info(name, consumerName))
    // Asked for after the consumer, so that the stream can only be further.
    const stream = yield* attempt("stream info", () => jsm.streams.info(name))
    if (yield* resetIfAhead(jsm, stream, consumer)) continue
    const seq = consumer.ack_floor.stream_seq - purgeMargin[part]
    if (seq > stream.state.first_seq) yield* attempt("purge", () => jsm.streams.purge(name, { seq }))
  }
  yield* maintainParked(jsm, streams.parked)
})

/**
 * The parked stream has a consumer for each subject. It is purged as a whole, below the first message that any of them has
 * not done, and never by subject: a purge with a filter makes nats-server 2.9 drop everything from the consumer of that
 * subject that is delivered and not acknowledged, as if it were done. So one shard that is lost holds up the purge of all.
 */
const maintainParked = Effect.fnUntraced(function* (jsm: JetStreamManager, name: string) {
  const consumers = (yield* listConsumers(jsm, name)).filter((consumer) => isParkedConsumer(consumer.name))
  const stream = yield* attempt("stream info", () => jsm.streams.info(name, { subjects_filter: ">" }))
  const filters = new Set(consumers.map((consumer) => consumer.config.filter_subject))
  // A consumer that is lost has yet to be made again; nobody knows what it has not done.
  if (Object.keys(stream.state.subjects ?? {}).some((subject) => !filters.has(subject))) return
  let done = stream.state.last_seq
  for (const consumer of consumers) {
    if (yield* resetIfAhead(jsm, stream, consumer)) return
    // The client's type knows only requests for the last message of a subject, not for the next.
    const query = { seq: consumer.ack_floor.stream_seq + 1, next_by_subj: consumer.config.filter_subject ?? ">" }
    const open = yield* attempt("next message", () => jsm.streams.getMessage(name, query))
    if (open !== null) done = Math.min(done, open.seq - 1)
  }
  const seq = done - purgeMargin.parked
  if (seq > stream.state.first_seq) yield* attempt("purge", () => jsm.streams.purge(name, { seq }))
})
