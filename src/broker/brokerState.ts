/** What is there of the streams and consumers that a worker uses, and how far the consumers are. */
import type { JetStreamManager } from "@nats-io/jetstream"
import { Effect } from "effect"
import type { BrokerState, BrokerUnavailable, ConsumerState } from "./Broker.ts"
import type { IntakeCounts } from "./Intake.ts"
import { isNotFound } from "../nats/jetStreamErrors.ts"
import { consumerProblem } from "./consumerRules.ts"
import { attempt, findConsumer, streamSubjects, type Topics } from "./provision.ts"
import { consumerName } from "../contract/Topics.ts"

/** The stream that captures a subject, whatever it is called. By its name alone: all streams of a cluster are asked for more. */
const findStream = (jsm: JetStreamManager, subject: string) =>
  attempt("find stream", () => jsm.streams.find(subject)).pipe(Effect.catchIf(isNotFound, () => Effect.undefined))

const missingStream = (subject: string): string => `the stream for ${subject} is missing`

const lookAtConsumer = Effect.fnUntraced(function* (jsm: JetStreamManager, topic: string, counts: IntakeCounts) {
  const stream = yield* findStream(jsm, topic)
  if (stream === undefined) return { problems: [missingStream(topic)], state: undefined }
  const found = yield* findConsumer(jsm, stream, consumerName)
  if (found === undefined) {
    return { problems: [`the consumer ${consumerName} of stream ${stream} is missing`], state: undefined }
  }
  // Somebody may have changed it under the workers.
  const problem = consumerProblem(found.config, topic)
  const state: ConsumerState = {
    pending: found.num_pending,
    ackPending: found.num_ack_pending,
    ackFloor: found.ack_floor.stream_seq,
    delivered: found.delivered.consumer_seq,
    pulls: found.num_waiting,
    ...counts,
  }
  return {
    problems: problem === undefined ? [] : [`stream ${stream}: consumer ${consumerName}: ${problem}`],
    state,
  }
})

export const brokerState = (
  jsm: JetStreamManager,
  topics: Topics,
  counts: { readonly logs: IntakeCounts; readonly query: IntakeCounts },
): Effect.Effect<BrokerState, BrokerUnavailable> =>
  Effect.gen(function* () {
    const { dead, parked, response } = streamSubjects(topics)
    const subjects = [response, dead, parked].map(([subject]) => subject!)
    const [appends, queries, ...streams] = yield* Effect.all(
      [
        lookAtConsumer(jsm, topics.logsTopic, counts.logs),
        lookAtConsumer(jsm, topics.queryTopic, counts.query),
        ...subjects.map((subject) => findStream(jsm, subject)),
      ],
      { concurrency: "unbounded" },
    )
    return {
      appends: appends.state,
      queries: queries.state,
      problems: [
        ...appends.problems,
        ...queries.problems,
        ...subjects.filter((_, i) => streams[i] === undefined).map(missingStream),
      ],
    }
  })
