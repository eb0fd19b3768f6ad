/**
 * Room in the broker's store that is ours to give up: a stream that holds nothing but bytes.
 *
 * A store can be full of requests of which none is done. To be done, each needs room for its event, and only then it may go.
 * So the first bytes have to be there already, and to be taken where nobody else can have them. The reserve is made while
 * there is room, given up when there is none, and made again afterwards; that this succeeds is how we know that there is
 * room.
 */
import { DiscardPolicy, type JetStreamManager, RetentionPolicy, StorageType } from "@nats-io/jetstream"
import { Effect } from "effect"
import { BrokerUnavailable } from "./Broker.ts"
import { blockText } from "../nats/headers.ts"
import { attempt, findStream, streamName, type Topics } from "./provision.ts"
import { type Message, publishMade, type PublishAll } from "../nats/publish.ts"
import { isStoreFull } from "../nats/jetStreamErrors.ts"
import { reserveTopic } from "../contract/Topics.ts"

/**
 * Bytes: the largest message by which a store may exceed its limit before it refuses, the largest one that we have to store,
 * and the events of some batches.
 */
const reserveBytes = (maxPayload: number) => 2 * maxPayload + 8 * 1024 ** 2

/** A piece of it, in bytes. */
const pieceBytes = (maxPayload: number) => Math.min(512 * 1024, Math.floor(maxPayload / 2))

export interface Reserve {
  /** Makes it whole, or as large as there is room, and gives `false`. */
  readonly fill: Effect.Effect<boolean, BrokerUnavailable>
  /** Gives it up; how many pieces there were. */
  readonly giveUp: Effect.Effect<number, BrokerUnavailable>
}

export interface ReserveOptions {
  readonly jsm: JetStreamManager
  readonly topics: Topics
  readonly publish: PublishAll<BrokerUnavailable>
  readonly maxPayload: () => number
}

export const makeReserve = ({ jsm, maxPayload, publish, topics }: ReserveOptions): Reserve => {
  const topic = reserveTopic(topics.logsTopic)
  const name = streamName(topic)
  const giveUp = attempt("purge", () => jsm.streams.purge(name)).pipe(Effect.map(({ purged }) => purged))

  const message = (token: string, payload: Uint8Array): Message => ({
    subject: `${topic}.${token}`,
    payload,
    headers: blockText([]),
    copy: undefined,
  })
  /** Those that are not there. */
  const missing = Effect.gen(function* () {
    const { subjects = {} } = (yield* attempt("stream info", () => jsm.streams.info(name, { subjects_filter: ">" })))
      .state
    const piece = new Uint8Array(pieceBytes(maxPayload()))
    return Array.from({ length: Math.ceil(reserveBytes(maxPayload()) / piece.length) }, (_, i) =>
      message(String(i), piece),
    ).filter(({ subject }) => subjects[subject] === undefined)
  })

  const ensure = Effect.gen(function* () {
    const found = yield* findStream(jsm, `${topic}.>`)
    if (found !== undefined && found.config.name === name && found.config.subjects.join() === `${topic}.>`) return found
    if (found !== undefined) {
      const cause = new Error(`stream ${found.config.name} captures ${topic}.>, which is for the reserve`)
      return yield* new BrokerUnavailable({ operation: "reserve", cause })
    }
    // The same for all workers: the server answers who comes second with what is there.
    return yield* attempt("create stream", () =>
      jsm.streams.add({
        name,
        subjects: [`${topic}.>`],
        storage: StorageType.File,
        retention: RetentionPolicy.Limits,
        num_replicas: topics.replicas,
        max_msgs_per_subject: 1,
        discard: DiscardPolicy.Old,
        duplicate_window: 100_000_000,
      }),
    )
  })

  const fill = Effect.gen(function* () {
    const { state } = yield* ensure
    const pieces = state.bytes < reserveBytes(maxPayload()) ? yield* missing : []
    // A last, small one also where nothing is missing: whether the broker stores is seen by storing.
    yield* publishMade(publish, [...pieces, message("probe", new Uint8Array(1))])
    return true
  }).pipe(Effect.catchIf(isStoreFull, () => Effect.succeed(false)))

  return { fill, giveUp }
}
