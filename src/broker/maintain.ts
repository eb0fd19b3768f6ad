/** Keeps the streams small, and sees to it that no consumer is ahead of its stream. */
import type { ConsumerInfo, JetStreamManager, StreamInfo } from "@nats-io/jetstream"
import { Effect } from "effect"
import { attempt, consumerName, isParkedConsumer, type Provisioned } from "./provision.ts"

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
  const name = streams.parked
  const consumers = yield* attempt("consumers", () => jsm.consumers.list(name).next())
  const stream = yield* attempt("stream info", () => jsm.streams.info(name))
  // Each consumer has a subject of its own; one that is not pulled for long does not hold up the others.
  for (const consumer of consumers) {
    const filter = consumer.config.filter_subject
    if (filter === undefined || !isParkedConsumer(consumer.name)) continue
    if (yield* resetIfAhead(jsm, stream, consumer)) continue
    const seq = consumer.ack_floor.stream_seq - purgeMargin.parked
    if (seq > stream.state.first_seq) yield* attempt("purge", () => jsm.streams.purge(name, { seq, filter }))
  }
})
