/** What the broker stores for a worker: events, dead letters and parked requests; and the wire's failures in its own words. */
import { Effect } from "effect"
import { blockText, type HeaderBlock, idBlock } from "../nats/headers.ts"
import { isStoreFull } from "../nats/jetStreamErrors.ts"
import { type Message, type PublishAll, publishMade, type PublishFailed } from "../nats/publish.ts"
import type { TraceHeaders } from "../trace/traceContext.ts"
import { type Broker, BrokerUnavailable, type Delivery, type OutgoingEvent } from "./Broker.ts"
import { deadLetterMessages } from "./deadLetter.ts"
import { NatsDelivery } from "./NatsDelivery.ts"
import type { Topics } from "./provision.ts"
import type { Recovery } from "./Recovery.ts"
import { parkedSubject, parkedMessage } from "./parked.ts"
import type { Storage } from "./Storage.ts"
import type { StreamRole } from "./streamRules.ts"

export const publishFailed = ({ cause }: PublishFailed): BrokerUnavailable =>
  new BrokerUnavailable({ operation: "publish", cause })

/** Headers of an event: a message id for the broker's deduplication, and the trace where there is one. */
export const eventHeaders = (messageId: string, trace: TraceHeaders | undefined): HeaderBlock => {
  if (trace === undefined) return idBlock(messageId)
  const { traceparent, tracestate } = trace
  const id = ["Nats-Msg-Id", messageId] as const
  const parent = ["traceparent", traceparent] as const
  return blockText(tracestate === undefined ? [id, parent] : [id, parent, ["tracestate", tracestate]])
}

/** A text of more characters becomes bytes here, once for event, copy and every attempt; a short one is cheaper as text. */
const longText = 16 * 1024

const toMessage = (topic: string, { payload: text, messageId, replyTo, trace }: OutgoingEvent): Message => {
  const payload = text.length > longText ? Buffer.from(text) : text
  const headers = eventHeaders(messageId, trace)
  if (replyTo === undefined) return { subject: topic, payload, headers, copy: undefined }
  // Below the response topic the stream takes the copy too, as a message of its own.
  const captured = replyTo.startsWith(`${topic}.`)
  const copy = { subject: replyTo, headers: captured ? eventHeaders(`${messageId}:reply`, trace) : headers }
  return { subject: topic, payload, headers, copy }
}

const sizeOf = (event: OutgoingEvent): number =>
  (event.size ?? event.payload.length) * (event.replyTo === undefined ? 1 : 2)

const foreign = (operation: string) =>
  Effect.fail(new BrokerUnavailable({ operation, cause: new Error("not a delivery of this broker") }))

export interface PublishingOptions {
  /** One for each stream that is published to. */
  readonly publishers: Readonly<Record<"response" | "dead" | "parked", PublishAll<BrokerUnavailable>>>
  readonly topics: Topics
  readonly storage: Storage
  readonly recovery: Recovery
  readonly maxPayload: () => number
}

export const makePublishing = ({
  maxPayload,
  publishers,
  recovery,
  storage,
  topics,
}: PublishingOptions): Pick<Broker["Service"], "publish" | "deadLetter" | "park"> => {
  /** Makes a stream again that did not confirm what was stored in it; its failure is the caller's. */
  const repairing =
    (role: StreamRole) =>
    <A>(self: Effect.Effect<A, BrokerUnavailable>): Effect.Effect<A, BrokerUnavailable> =>
      self.pipe(
        Effect.tap(() => Effect.sync(() => recovery.works(role))),
        Effect.tapError(() => recovery.repair(role)),
      )
  return {
    publish: (events) =>
      repairing("response")(
        storage.storeEvents(
          events.length,
          publishers.response(events, (event) => toMessage(topics.responseTopic, event), sizeOf),
        ),
      ),
    deadLetter: (delivery, reason) =>
      delivery instanceof NatsDelivery
        ? Effect.suspend(() =>
            storage.store(
              "dead letters",
              publishMade(publishers.dead, deadLetterMessages(topics.deadTopic, delivery, reason, maxPayload())),
            ),
          ).pipe(repairing("dead"))
        : foreign("dead letter"),
    park: (kind, shard, all) =>
      Effect.suspend(() => {
        const subject = parkedSubject(topics.logsTopic, kind, shard)
        const messages: Array<Message> = []
        const tooLarge: Array<Delivery> = []
        for (const delivery of all) {
          if (!(delivery instanceof NatsDelivery)) return foreign("park")
          const message = parkedMessage(subject, delivery, maxPayload())
          if (message === undefined) tooLarge.push(delivery)
          else messages.push(message)
        }
        return storage.store("parked requests", publishMade(publishers.parked, messages)).pipe(
          Effect.as<ReadonlyArray<Delivery>>(tooLarge),
          // They go back to the intake, where they have their room already.
          Effect.catchIf(isStoreFull, () => Effect.succeed(all)),
        )
      }).pipe(repairing("parked")),
  }
}
