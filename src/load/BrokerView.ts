/**
 * What the broker knows and no subscription tells: how far the workers have acknowledged, and events that were missed.
 *
 * Both need its JetStream interface. A client may not be allowed to use it; then the load generator goes by time alone.
 */
import { DeliverPolicy, jetstream, jetstreamManager, type JetStreamManager } from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/transport-node"
import { Effect, Schema } from "effect"
import { consumerName, parkedTopic } from "../contract/Topics.ts"

/** The broker did not tell; the run goes on without. */
export class ViewUnavailable extends Schema.TaggedError<ViewUnavailable>()("ViewUnavailable", {
  operation: Schema.String,
  cause: Schema.Defect(),
}) {
  override get message(): string {
    return `broker: ${this.operation} failed: ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
}

const withSignal = <A>(operation: string, run: (signal: AbortSignal) => Promise<A>) =>
  Effect.tryPromise({ try: run, catch: (cause) => new ViewUnavailable({ operation, cause }) }).pipe(
    Effect.timeoutOrElse({
      duration: timeoutMillis,
      orElse: () => Effect.fail(new ViewUnavailable({ operation, cause: new Error("no answer in time") })),
    }),
  )

/** How long one look may take. A replay after an outage can have many events. */
const timeoutMillis = 30_000

/** Whether an append is parked: acknowledged in the intake, and neither committed nor answered yet. */
const isAnyParked = async (manager: JetStreamManager, logsTopic: string): Promise<boolean> => {
  const topic = parkedTopic(logsTopic)
  for await (const { config } of manager.streams.list(`${topic}.>`)) {
    // All of them: a page has 256, and there are two for each shard.
    const consumers = await Array.fromAsync(manager.consumers.list(config.name))
    const { state } = await manager.streams.info(config.name, { subjects_filter: ">" })
    for (const subject of Object.keys(state.subjects ?? {})) {
      if (subject.startsWith(`${topic}.reads.`)) continue
      const consumer = consumers.find((one) => one.config.filter_subject === subject)
      if (consumer === undefined) return true
      const query = { seq: consumer.ack_floor.stream_seq + 1, next_by_subj: subject }
      if ((await manager.streams.getMessage(config.name, query)) !== null) return true
    }
  }
  return false
}

/** The sequence number up to which the workers are done with all appends; `undefined` while any is parked. */
export const readFloor = (
  connection: NatsConnection,
  logsTopic: string,
): Effect.Effect<number | undefined, ViewUnavailable> =>
  withSignal("read the acknowledgement floor", async () => {
    const manager = await jetstreamManager(connection, { checkAPI: false })
    const stream = await manager.streams.find(logsTopic)
    const { ack_floor } = await manager.consumers.info(stream, consumerName)
    // Looked for after that: an append is parked before it is acknowledged.
    return (await isAnyParked(manager, logsTopic)) ? undefined : ack_floor.stream_seq
  })

/**
 * Takes the events that the broker has stored since a time (Unix milliseconds, its clock). True if these are all: its
 * stream is bounded and drops the oldest.
 */
export const replayEvents = (
  connection: NatsConnection,
  responseTopic: string,
  sinceMillis: number,
  take: (data: Uint8Array) => void,
): Effect.Effect<boolean, ViewUnavailable> =>
  withSignal("replay events", async (signal) => {
    const manager = await jetstreamManager(connection, { checkAPI: false })
    const stream = await manager.streams.find(responseTopic)
    const { state } = await manager.streams.info(stream)
    const complete = state.first_seq <= 1 || Date.parse(state.first_ts) < sinceMillis
    const consumer = await jetstream(connection).consumers.get(stream, {
      filter_subjects: responseTopic,
      deliver_policy: DeliverPolicy.StartTime,
      opt_start_time: new Date(sinceMillis).toISOString(),
    })
    const { num_pending } = await consumer.info()
    if (num_pending === 0) return complete
    const messages = await consumer.consume()
    signal.addEventListener("abort", () => messages.stop())
    for await (const message of messages) {
      take(message.data)
      if (message.info.pending === 0) break
    }
    return complete && !signal.aborted
  })
