/**
 * Requests under way on one connection, and what is heard of them.
 *
 * They are published with JetStream, so that the client knows that the broker has stored them. Answers come to an inbox of
 * its own: one wildcard subscription, told apart by the request's id.
 */
import { jetstream, JetStreamApiError, JetStreamError } from "@nats-io/jetstream"
import { createInbox, errors, type NatsConnection } from "@nats-io/transport-node"
import { Duration, Effect, type Scope } from "effect"
import { decodeEvent, type Event } from "../contract/Event.ts"
import type { ConnectionState } from "../nats/connection.ts"
import { ClientFailed, connectFailure, seconds, timerMillis } from "./connection.ts"

/** An event about a request, and its text: there an id has all its digits. */
export interface Answer {
  readonly event: Event
  readonly text: string
}

/** What is to be told about a request. */
export interface Listener {
  readonly receive: (answer: Answer) => void
  /** No answer can come any more. */
  readonly fail: (error: ClientFailed) => void
}

interface Request {
  readonly id: string
  /** Where it is to be answered. */
  readonly replyTo: string
  /** Nothing more is told of it. */
  readonly close: Effect.Effect<void>
}

export interface Requests {
  /** A request of which the listener hears until it is closed; fails where no answer can come any more. */
  readonly open: (listener: Listener) => Effect.Effect<Request, ClientFailed>
  /** Publishes at once, in the order of the calls; the promise tells whether the broker stored it, and never rejects. */
  readonly publish: (topic: string, body: string, messageId?: string) => Promise<ClientFailed | undefined>
  /**
   * Waits for an answer; any answer that arrives meanwhile starts the time-out anew, since work goes on. Where none comes
   * `unanswered` says what is known.
   */
  readonly within: <A, E>(wait: Effect.Effect<A, E>, unanswered: () => string) => Effect.Effect<A, E | ClientFailed>
  /** The largest message that the server takes, in bytes. */
  readonly maxPayload: () => number
  /** What is known of a request that the broker has not confirmed. */
  readonly unconfirmed: string
}

/** Hears answers until the scope closes. */
export const makeRequests = Effect.fnUntraced(function* (
  connection: NatsConnection,
  state: ConnectionState,
  timeout: Duration.Duration,
): Effect.fn.Return<Requests, never, Scope.Scope> {
  const js = jetstream(connection, { timeout: timerMillis(timeout) })
  const inbox = createInbox()
  const listeners = new Map<string, Listener>()
  let requests = 0
  let heard = 0
  let lost: ClientFailed | undefined

  const fail = (reason: string): void => {
    lost = new ClientFailed({ reason })
    for (const listener of listeners.values()) listener.fail(lost)
  }
  const receive = (text: string): void => {
    const event = decodeEvent(text)
    if (event?.requestId === undefined) return
    heard += 1
    listeners.get(event.requestId)?.receive({ event, text })
  }
  const subscription = connection.subscribe(`${inbox}.*`, {
    callback: (error, message) => {
      if (error === null) receive(message.string())
      else fail(`the server refuses the answers: ${error.message}`)
    },
  })
  yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
  const lostReason = () =>
    `the connection to the server is lost${state.complaint === undefined ? "" : `; the server says: ${state.complaint}`}`
  void connection.closed().then(() => fail(lostReason()))

  const open: Requests["open"] = (listener) =>
    Effect.suspend(() => {
      if (lost !== undefined) return Effect.fail(lost)
      const id = `c${(requests++).toString(36)}`
      listeners.set(id, listener)
      return Effect.succeed({ id, replyTo: `${inbox}.${id}`, close: Effect.sync(() => void listeners.delete(id)) })
    })

  const unconfirmed = `not confirmed by the broker within ${seconds(timeout)}: it may be stored or not`

  const publishFailure = (topic: string, error: unknown): string => {
    // Nobody took it. The library's own class for that, JetStreamNotEnabled, is not exported.
    const cause = error instanceof Error ? error.cause : undefined
    if (cause instanceof errors.RequestError && cause.isNoResponders()) {
      return `not stored: no objectlog worker has ever been connected to this server, so that nothing stores the subject ${topic}`
    }
    if (error instanceof errors.TimeoutError) {
      return state.connected ? unconfirmed : `${lostReason()}: the request may be stored or not`
    }
    if (error instanceof JetStreamApiError || error instanceof JetStreamError) {
      return `not stored: the server refused the request on ${topic}: ${error.message}`
    }
    return `can't publish on ${topic}: ${connectFailure(error)}`
  }
  const publish: Requests["publish"] = (topic, body, messageId) =>
    js.publish(topic, body, messageId === undefined ? {} : { msgID: messageId }).then(
      () => undefined,
      (error: unknown) => new ClientFailed({ reason: publishFailure(topic, error) }),
    )

  const within: Requests["within"] = (wait, unanswered) =>
    Effect.suspend(() => {
      const before = heard
      return Effect.timeoutOrElse(wait, {
        duration: timeout,
        orElse: () =>
          heard === before
            ? Effect.fail(new ClientFailed({ reason: state.connected ? unanswered() : lostReason() }))
            : within(wait, unanswered),
      })
    })

  return {
    open,
    publish,
    within,
    maxPayload: () => connection.info?.max_payload ?? Number.POSITIVE_INFINITY,
    unconfirmed,
  }
})
