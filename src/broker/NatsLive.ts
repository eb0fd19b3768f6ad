/** The broker on NATS JetStream. */
import { jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Random, Schedule, Stream } from "effect"
import { Broker, BrokerUnavailable, type Delivery, type OutgoingEvent } from "./Broker.ts"
import { connectionOptions } from "./connectionOptions.ts"
import { deadLetterMessages } from "./deadLetter.ts"
import { deliveries, NatsDelivery, type Reconnects } from "./deliveries.ts"
import { attempt, type BrokerMisconfigured, provision, type Provisioned, purgeDone, type Topics } from "./provision.ts"
import { brokerState } from "./brokerState.ts"
import { makePublisher, type Message, messageIdHeaders } from "./publish.ts"

export interface NatsSettings extends Topics {
  /** Comma-separated server list; may carry credentials, so it is never shown. */
  readonly servers: string
  readonly connectionName: string
}

/** Messages asked for at a time: two lanes' worth of batches, and some large reads. */
const appendsPull = 1_000
const queriesPull = 64

/** Waits until a server answers, saying so every few seconds. */
const connected = Effect.fnUntraced(function* (settings: NatsSettings, reconnects: Reconnects) {
  // One attempt can't be interrupted, so that no connection is lost; waiting for the next one can.
  const connection = yield* Effect.acquireRelease(
    attempt("connect", () =>
      connect({
        ...connectionOptions(settings.servers).options,
        name: settings.connectionName,
        maxReconnectAttempts: -1,
        reconnectTimeWait: 250,
        reconnectJitter: 100,
        pingInterval: 10_000,
        timeout: 2_000,
      }),
    ),
    (nc) =>
      attempt("drain", () => nc.drain()).pipe(
        Effect.timeoutOption("2 seconds"),
        Effect.ignore,
        Effect.andThen(Effect.promise(() => nc.close())),
      ),
  ).pipe(
    Effect.tapError((error) => Effect.logWarning(`${error.message}; trying again`)),
    Effect.retry(Schedule.spaced("2 seconds")),
  )
  yield* Stream.fromAsyncIterable(connection.status(), (cause) => cause).pipe(
    Stream.tap((status) =>
      Effect.sync(() => {
        if (status.type === "disconnect") reconnects.connected = false
        if (status.type === "reconnect") reconnects.connected = true
      }),
    ),
    Stream.runForEach((status) =>
      status.type === "disconnect" || status.type === "ldm" || status.type === "error"
        ? Effect.logWarning(`broker: ${status.type}`)
        : status.type === "reconnect"
          ? Effect.andThen(
              Effect.sync(() => reconnects.listeners.forEach((listener) => listener())),
              Effect.logInfo("broker: reconnected"),
            )
          : Effect.void,
    ),
    Effect.ignore,
    Effect.forkScoped,
  )
  return connection
})

const toMessage = (topic: string, { payload, messageId, replyTo }: OutgoingEvent): Message => {
  const headers = messageIdHeaders(messageId)
  if (replyTo === undefined) return { subject: topic, payload, headers, copy: undefined }
  // Below the response topic the stream takes the copy too, as a message of its own.
  const captured = replyTo.startsWith(`${topic}.`)
  const copy = { subject: replyTo, headers: captured ? messageIdHeaders(`${messageId}:reply`) : headers }
  return { subject: topic, payload, headers, copy }
}

const make = Effect.fnUntraced(function* (settings: NatsSettings) {
  const reconnects: Reconnects = { listeners: new Set(), connected: true }
  const connection: NatsConnection = yield* connected(settings, reconnects)
  const jsm = yield* attempt("JetStream", () => jetstreamManager(connection, { checkAPI: false }))
  const backoff = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]).pipe(
    Schedule.jittered,
  )
  const provisioned: Effect.Effect<Provisioned, BrokerMisconfigured> = provision(jsm, settings).pipe(
    Effect.tapErrorTag("BrokerUnavailable", (error) => Effect.logWarning(`${error.message}; trying again`)),
    Effect.retry({ schedule: backoff, while: (error) => error._tag === "BrokerUnavailable" }),
    // The schedule has no end, so only a misconfiguration comes through.
    Effect.catchTag("BrokerUnavailable", () => Effect.never),
  )
  const streams = yield* provisioned
  const publishAll = yield* makePublisher(connection, reconnects)

  /** After a consumer was lost: a pause, then everything that is missing is made again. */
  const recover = Effect.fnUntraced(function* (part: "logs" | "query", reason: string, failures: number) {
    yield* Effect.logWarning(`broker: the consumer on ${part} is lost (${reason}); making sure of it`)
    yield* Effect.sleep(Math.min(200 * 2 ** failures, 5_000) * (0.8 + 0.4 * (yield* Random.next)))
    return yield* provisioned.pipe(
      Effect.map((found) => found[part]),
      Effect.catch((misconfigured) => Effect.as(Effect.logError(misconfigured.message), streams[part])),
    )
  })
  const intake = (part: "logs" | "query", pull: number) => {
    const { [part]: stream } = streams
    return deliveries(
      { connection, stream, pull, recover: (reason, failures) => recover(part, reason, failures) },
      reconnects,
    )
  }

  yield* purgeDone(jsm, streams).pipe(
    Effect.catch((error) => Effect.logDebug(error.message)),
    Effect.repeat(Schedule.jittered(Schedule.spaced("10 seconds"))),
    Effect.forkScoped,
  )

  // Unknown while the connection is being made again: then the last one counts.
  let lastMaxPayload = 1024 * 1024
  const maxPayload = () => (lastMaxPayload = connection.info?.max_payload ?? lastMaxPayload)
  maxPayload()
  return Broker.of({
    maxPayload,
    isConnected: () => reconnects.connected && !connection.isClosed(),
    state: brokerState(jsm, settings),
    appends: intake("logs", appendsPull),
    queries: intake("query", queriesPull),
    publish: (events) =>
      Effect.suspend(() => publishAll(events.map((event) => toMessage(settings.responseTopic, event)))),
    deadLetter: (delivery: Delivery, reason) =>
      delivery instanceof NatsDelivery
        ? Effect.suspend(() => publishAll(deadLetterMessages(settings.deadTopic, delivery, reason, maxPayload())))
        : Effect.fail(
            new BrokerUnavailable({ operation: "dead letter", cause: new Error("not a delivery of this broker") }),
          ),
  })
})

/** The live broker. Building it waits for the server, and creates streams and consumers that are missing. */
export const NatsLive = (settings: NatsSettings): Layer.Layer<Broker, BrokerUnavailable | BrokerMisconfigured> =>
  Layer.effect(Broker, make(settings))
