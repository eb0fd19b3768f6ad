/**
 * Pipelined publishing: every message has its own token in the reply subject, and the broker's acknowledgements of all of
 * them arrive on one inbox, where they are counted. No promise, timer or subscription for a single message.
 */
import { createInbox, headers, type MsgHdrs, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Semaphore, type Scope } from "effect"
import { BrokerUnavailable } from "./Broker.ts"

/** A message for a stream, which confirms it. */
export interface Message {
  readonly subject: string
  readonly payload: string | Uint8Array
  readonly headers: MsgHdrs
  /** A subject outside of any stream that gets a copy, sent before. */
  readonly copyTo: string | undefined
}

/** One permit is worth a message of up to this many bytes; as many as there are may be unconfirmed. */
const permitBytes = 1024
const permits = 8 * 1024

/** Messages sent at once, so that several callers take turns. */
const sliceMessages = 1024

/** An acknowledgement that takes longer is taken as lost, and the message is sent again. */
const ackTimeoutMillis = 5_000

const attempts = 3

/** What waits for its acknowledgements. */
interface Slice {
  /** Indexes of the messages without one. */
  readonly missing: Set<number>
  failure: string | undefined
  readonly done: () => void
}

/** Stores messages and succeeds when each one was confirmed. One that was sent twice is dropped by its `Nats-Msg-Id`. */
export type PublishAll = (messages: ReadonlyArray<Message>) => Effect.Effect<void, BrokerUnavailable>

const failed = (reason: string) => new BrokerUnavailable({ operation: "publish", cause: new Error(reason) })

export const makePublisher = Effect.fnUntraced(function* (
  connection: NatsConnection,
): Effect.fn.Return<PublishAll, never, Scope.Scope> {
  const inbox = createInbox()
  const window = Semaphore.makeUnsafe(permits)
  const waiting = new Map<number, { readonly slice: Slice; readonly index: number }>()
  let lastToken = 0

  const subscription = connection.subscribe(`${inbox}.*`, {
    callback: (error, message) => {
      if (error !== null) return
      const token = Number.parseInt(message.subject.slice(inbox.length + 1), 36)
      const entry = waiting.get(token)
      if (entry === undefined) return
      waiting.delete(token)
      const { slice, index } = entry
      // `{"stream":…` confirms, `{"error":…` refuses; without a stream there is an empty message with status 503.
      if (message.data[2] === 0x73) slice.missing.delete(index)
      else slice.failure = message.data.length === 0 ? "no stream takes that subject" : message.string()
      if (slice.missing.size === 0 || slice.failure !== undefined) slice.done()
    },
  })
  yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))

  const send = (message: Message, slice: Slice, index: number): void => {
    const token = ++lastToken
    waiting.set(token, { slice, index })
    if (message.copyTo !== undefined) {
      connection.publish(message.copyTo, message.payload, { headers: message.headers })
    }
    connection.publish(message.subject, message.payload, {
      headers: message.headers,
      reply: `${inbox}.${token.toString(36)}`,
    })
  }

  /** Sends once and waits for the acknowledgements; gives the messages that got none. */
  const sendOnce = (messages: ReadonlyArray<Message>): Effect.Effect<ReadonlyArray<Message>, BrokerUnavailable> =>
    Effect.callback((resume) => {
      const firstToken = lastToken + 1
      const finish = () => {
        clearTimeout(timer)
        for (let token = firstToken; token < firstToken + messages.length; token++) waiting.delete(token)
      }
      const slice: Slice = {
        missing: new Set(messages.keys()),
        failure: undefined,
        done: () => {
          finish()
          resume(slice.failure === undefined ? Effect.succeed([]) : Effect.fail(failed(slice.failure)))
        },
      }
      const timer = setTimeout(() => {
        finish()
        resume(Effect.succeed([...slice.missing].map((index) => messages[index]!)))
      }, ackTimeoutMillis)
      try {
        messages.forEach((message, index) => send(message, slice, index))
      } catch (cause) {
        finish()
        return resume(Effect.fail(new BrokerUnavailable({ operation: "publish", cause })))
      }
      return Effect.sync(finish)
    })

  const sendSlice = Effect.fnUntraced(function* (messages: ReadonlyArray<Message>) {
    let rest = messages
    for (let i = 0; i < attempts && rest.length > 0; i++) rest = yield* sendOnce(rest)
    if (rest.length > 0) return yield* failed(`${rest.length} of ${messages.length} were not confirmed in time`)
  })

  return Effect.fnUntraced(function* (messages: ReadonlyArray<Message>) {
    let start = 0
    while (start < messages.length) {
      let end = start
      let cost = 0
      while (end < messages.length && end - start < sliceMessages) {
        const next = Math.ceil((messages[end]!.payload.length + 256) / permitBytes)
        if (end > start && cost + next > permits / 2) break
        cost += next
        end++
      }
      const slice = start === 0 && end === messages.length ? messages : messages.slice(start, end)
      yield* window.withPermits(Math.min(cost, permits))(sendSlice(slice))
      start = end
    }
  })
})

/** Headers with a message id for the broker's deduplication. */
export const messageIdHeaders = (messageId: string): MsgHdrs => {
  const all = headers()
  all.set("Nats-Msg-Id", messageId)
  return all
}
