/**
 * Pipelined publishing: messages are sent in slices, each with a reply subject of its own, on which the broker's
 * acknowledgements are counted. No promise, timer, subscription or token for a single message: one that is missing has its
 * whole slice sent again, which the broker's deduplication makes harmless.
 */
import type { NatsConnection, PermissionViolationError } from "@nats-io/transport-node"
import { Effect, Schema, type Scope } from "effect"
import type { ConnectionState } from "./connection.ts"
import type { HeaderBlock } from "./headers.ts"
import { Inbox } from "./Inbox.ts"
import type { Incoming, Receive } from "./Incoming.ts"
import type { Outgoing } from "./Outgoing.ts"
import { fullStoreIn, Unconfirmed } from "./jetStreamErrors.ts"
import { Window } from "./Window.ts"

/** Messages were not all confirmed: some may be stored. */
export class PublishFailed extends Schema.TaggedError<PublishFailed>()("PublishFailed", { cause: Schema.Defect() }) {
  override get message(): string {
    return this.cause instanceof Error ? this.cause.message : String(this.cause)
  }
}

/** A message for a stream, which confirms it. */
export interface Message {
  readonly subject: string
  readonly payload: string | Uint8Array
  readonly headers: HeaderBlock
  /**
   * A second subject, sent first and not confirmed: the server handles what a connection sends in order, so that the
   * confirmation of the message proves that the copy was there before.
   */
  readonly copy: { readonly subject: string; readonly headers: HeaderBlock } | undefined
}

/** What may be unconfirmed, in bytes, and what each message counts beside its payload: subjects and headers. */
const windowBytes = 8 * 1024 * 1024
const messageBytes = 256

/** Messages sent at once, so that several callers take turns. */
const sliceMessages = 1024

/** Acknowledgements that take longer are taken as lost, and the slice is sent again. */
const ackTimeoutMillis = 5_000

/** How often a slice is sent before its caller hears of it, and the pause before it is sent again, which doubles. */
const attempts = 4
const pauseMillis = 100

/** Messages that wait for their acknowledgements. */
interface Slice {
  /** Of all its messages; the broker names it where it refuses the right to publish. */
  subject: string
  unanswered: number
  /** The stream that answers first; another one, of a domain beside ours, may take the same subject. */
  stream: string | undefined
  /** Answers so far. In a cluster a new leader may confirm once more what the one before has confirmed. */
  readonly confirmed: Set<string>
  /** What the broker said of a message that it did not store. */
  failure: string | undefined
  readonly done: () => void
  /** The broker refuses the right to send it: to do so again at once would not help. */
  readonly refuse: (reason: string) => void
}

/**
 * Stores messages and succeeds when each one was confirmed. One that was sent twice is dropped by its `Nats-Msg-Id`.
 *
 * A message is made when it is sent, and made again when it is sent again: thousands wait for their confirmation, and the
 * garbage collector would move each of them. `size` is about how many bytes it has, with its copy.
 */
export type PublishAll<E> = <A>(
  all: ReadonlyArray<A>,
  toMessage: (item: A) => Message,
  size: (item: A) => number,
) => Effect.Effect<void, E>

const unconfirmed = "not confirmed in time"

const failed = (cause: unknown) => new PublishFailed({ cause })

const send = (outgoing: Outgoing, { copy, headers, payload, subject }: Message, reply: string): void => {
  if (copy !== undefined) outgoing.publish(copy.subject, undefined, copy.headers, payload)
  outgoing.publish(subject, reply, headers, payload)
}

/** Whether a confirmation is one of a message that had none: `{"stream":"…", "seq":7}`, perhaps with `,"duplicate": true`. */
const isNews = (slice: Slice, answer: string): boolean => {
  const stream = answer.slice(0, answer.indexOf('"seq"'))
  if (stream !== (slice.stream ??= stream)) return false
  // Two messages with one id are confirmed as one, the second as a duplicate.
  if (answer.includes('"duplicate"')) return true
  const before = slice.confirmed.size
  return slice.confirmed.add(answer).size > before
}

/** Where the slice ends that begins at `start`, and its bytes. Two fit in the window, so that one is under way while the next is made. */
const nextSlice = <A>(
  all: ReadonlyArray<A>,
  start: number,
  size: (item: A) => number,
): { readonly end: number; readonly cost: number } => {
  let end = start
  let cost = 0
  while (end < all.length && end - start < sliceMessages) {
    const next = size(all[end]!) + messageBytes
    if (end > start && cost + next > windowBytes / 2) break
    cost += next
    end++
  }
  return { end, cost }
}

/** A publisher with a window of its own, until the scope closes; `failure` says in the caller's terms what failed. */
export const makePublisher = Effect.fnUntraced(function* <E>(
  connection: NatsConnection,
  outgoing: Outgoing,
  incoming: Incoming,
  state: ConnectionState,
  failure: (failed: PublishFailed) => E,
): Effect.fn.Return<PublishAll<E>, never, Scope.Scope> {
  const window = new Window(windowBytes)
  /** By reply subject. */
  const waiting = new Map<string, Slice>()
  let lastSlice = 0

  const acknowledged: Receive = (subject, _, __, payload) => {
    const slice = waiting.get(subject)
    if (slice === undefined) return
    const answer = String(payload)
    // `{"error":…` refuses; without a stream there is an empty message with status 503.
    if (!answer.startsWith('{"stream":')) slice.failure = answer || "no stream takes that subject"
    else if (!isNews(slice, answer)) return
    if (--slice.unanswered === 0) slice.done()
  }
  const inbox = new Inbox(connection, incoming, acknowledged, (reason) => {
    for (const slice of waiting.values()) slice.refuse(reason)
  })
  // The client drops what it could not send before a reconnect; no acknowledgement comes for that.
  const reconnected = () => {
    for (const slice of waiting.values()) slice.done()
  }
  const violated = ({ message, operation, subject }: PermissionViolationError) => {
    if (operation !== "publish") return
    for (const slice of waiting.values()) if (slice.subject === subject) slice.refuse(message)
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      state.onReconnect.add(reconnected)
      state.onViolation.add(violated)
    }),
    () =>
      Effect.sync(() => {
        state.onReconnect.delete(reconnected)
        state.onViolation.delete(violated)
        inbox.close()
      }),
  )

  /** Sends once and waits for the acknowledgements; gives the reason where not all were confirmed. */
  const sendOnce = <A>(
    all: ReadonlyArray<A>,
    toMessage: (item: A) => Message,
  ): Effect.Effect<string | undefined, PublishFailed> =>
    Effect.callback((resume) => {
      // A new one for each attempt: an acknowledgement that comes late does not count for the next.
      const reply = `${inbox.subject}.${(++lastSlice).toString(36)}`
      const finish = () => {
        clearTimeout(timer)
        waiting.delete(reply)
      }
      const slice: Slice = {
        subject: "",
        unanswered: all.length,
        stream: undefined,
        confirmed: new Set(),
        failure: undefined,
        done: () => {
          finish()
          resume(Effect.succeed(slice.failure ?? (slice.unanswered === 0 ? undefined : unconfirmed)))
        },
        refuse: (reason) => {
          finish()
          resume(Effect.fail(failed(new Error(reason))))
        },
      }
      const timer = setTimeout(slice.done, ackTimeoutMillis)
      waiting.set(reply, slice)
      try {
        inbox.open()
        for (const item of all) {
          const message = toMessage(item)
          slice.subject = message.subject
          send(outgoing, message, reply)
        }
      } catch (cause) {
        finish()
        return resume(Effect.fail(failed(cause)))
      }
      return Effect.sync(finish)
    })

  const sendSlice = Effect.fnUntraced(function* <A>(slice: ReadonlyArray<A>, toMessage: (item: A) => Message) {
    for (let i = 1; ; i++) {
      const failure = yield* sendOnce(slice, toMessage)
      if (failure === undefined) return
      // Waiting makes no room.
      const full = fullStoreIn(failure)
      if (full !== undefined) return yield* failed(full)
      if (i === attempts) {
        const text = `${slice.length} messages: ${failure}`
        return yield* failed(failure === unconfirmed ? new Unconfirmed(text) : new Error(text))
      }
      yield* Effect.sleep(pauseMillis * 2 ** (i - 1))
    }
  })

  return Effect.fnUntraced(function* <A>(
    all: ReadonlyArray<A>,
    toMessage: (item: A) => Message,
    size: (item: A) => number,
  ) {
    for (let start = 0; start < all.length;) {
      const { end, cost } = nextSlice(all, start, size)
      const slice = start === 0 && end === all.length ? all : all.slice(start, end)
      yield* window.within(cost)(Effect.mapError(sendSlice(slice, toMessage), failure))
      start = end
    }
  })
})

/** Publishes messages that are made already. */
export const publishMade = <E>(publish: PublishAll<E>, messages: ReadonlyArray<Message>) =>
  publish(
    messages,
    (message) => message,
    ({ payload }) => payload.length,
  )
