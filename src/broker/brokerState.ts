/** What is there of the streams and consumers that a worker uses, and how far the consumers are. */
import { JetStreamApiError, type JetStreamManager } from "@nats-io/jetstream"
import { Effect } from "effect"
import { type BrokerState, type BrokerUnavailable, type ConsumerState } from "./Broker.ts"
import type { IntakeCounts } from "./deliveries.ts"
import { attempt, consumerName, type Topics } from "./provision.ts"
import { parkedTopic } from "./setAside.ts"

/** The server's codes for a stream and a consumer that it does not have. */
const notFound = new Set([10059, 10014])

const isNotFound = (cause: unknown): boolean => cause instanceof JetStreamApiError && notFound.has(cause.code)

/** Gives `undefined` for what the server does not have. */
const ifThere = <A>(operation: string, find: () => Promise<A>): Effect.Effect<A | undefined, BrokerUnavailable> =>
  attempt(operation, find).pipe(
    Effect.catchIf(
      (error) => isNotFound(error.cause),
      () => Effect.undefined,
    ),
  )

/** The stream that captures a subject, whatever it is called. */
const findStream = (jsm: JetStreamManager, subject: string) => ifThere("find stream", () => jsm.streams.find(subject))

const findConsumer = Effect.fnUntraced(function* (jsm: JetStreamManager, topic: string, counts: IntakeCounts) {
  const stream = yield* findStream(jsm, topic)
  if (stream === undefined) return { missing: [`the stream for ${topic}`], state: undefined }
  const found = yield* ifThere("consumer info", () => jsm.consumers.info(stream, consumerName))
  if (found === undefined) return { missing: [`the consumer ${consumerName} of stream ${stream}`], state: undefined }
  const state: ConsumerState = {
    pending: found.num_pending,
    ackPending: found.num_ack_pending,
    ackFloor: found.ack_floor.stream_seq,
    delivered: found.delivered.consumer_seq,
    pulls: found.num_waiting,
    ...counts,
  }
  return { missing: [], state }
})

export const brokerState = (
  jsm: JetStreamManager,
  topics: Topics,
  counts: { readonly logs: IntakeCounts; readonly query: IntakeCounts },
): Effect.Effect<BrokerState, BrokerUnavailable> =>
  Effect.gen(function* () {
    const subjects = [topics.responseTopic, `${topics.deadTopic}.>`, `${parkedTopic(topics.logsTopic)}.>`]
    const [appends, queries, ...streams] = yield* Effect.all(
      [
        findConsumer(jsm, topics.logsTopic, counts.logs),
        findConsumer(jsm, topics.queryTopic, counts.query),
        ...subjects.map((subject) => findStream(jsm, subject)),
      ],
      { concurrency: "unbounded" },
    )
    return {
      appends: appends.state,
      queries: queries.state,
      missing: [
        ...appends.missing,
        ...queries.missing,
        ...subjects.filter((_, i) => streams[i] === undefined).map((subject) => `the stream for ${subject}`),
      ],
    }
  })
