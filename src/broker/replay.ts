/**
 * Has requests delivered again that are done: for a database that was restored from a backup and is older than the broker.
 *
 * The consumers are deleted and made again, so that they begin with the first message that the streams still hold. What is
 * stored is found by its stamp and not stored twice; what the restore lost is stored again, with its first stamp.
 */
import type { JetStreamManager } from "@nats-io/jetstream"
import { Effect, Schema } from "effect"
import type { BrokerUnavailable } from "./Broker.ts"
import {
  attempt,
  type BrokerMisconfigured,
  ensureConsumer,
  findStream,
  isParkedConsumer,
  listConsumers,
} from "./provision.ts"
import { consumerName } from "../contract/Topics.ts"
import { parkedTopic } from "../contract/Topics.ts"

/** There is no stream, so no worker has run with these topics. */
export class NothingToReplay extends Schema.TaggedError<NothingToReplay>()("NothingToReplay", {
  subject: Schema.String,
}) {
  override get message(): string {
    return `nothing to replay: no stream captures ${this.subject}`
  }
}

export interface Replayed {
  readonly stream: string
  /** What will be delivered: all that the stream holds, done or not. */
  readonly messages: number
  /** When the first of them was stored; `undefined` without messages. */
  readonly since: Date | undefined
}

/** Reads are not repeated: whoever asked has the answer, or asks again. */
const isReplayed = (name: string): boolean =>
  name === consumerName || (isParkedConsumer(name) && !name.startsWith("reads_"))

const replayStream = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  subject: string,
): Effect.fn.Return<Replayed, BrokerUnavailable | BrokerMisconfigured | NothingToReplay> {
  const found = yield* findStream(jsm, subject)
  if (found === undefined) return yield* new NothingToReplay({ subject })
  const stream = found.config.name
  const { state } = yield* attempt("stream info", () => jsm.streams.info(stream))
  const consumers = yield* listConsumers(jsm, stream)
  for (const { config, name } of consumers) {
    if (!isReplayed(name)) continue
    yield* attempt("delete consumer", () => jsm.consumers.delete(stream, name))
    // A worker that is running may be faster: it makes the same.
    yield* ensureConsumer(jsm, stream, {
      name,
      filter: config.filter_subject ?? subject,
      ackPendingMax: config.max_ack_pending ?? -1,
    })
  }
  return {
    stream,
    messages: state.messages,
    since: state.messages === 0 ? undefined : new Date(state.first_ts),
  }
})

/** Has all appends that the broker still holds delivered again. */
export const replay = (jsm: JetStreamManager, logsTopic: string) =>
  Effect.all([replayStream(jsm, logsTopic), replayStream(jsm, `${parkedTopic(logsTopic)}.>`)])
