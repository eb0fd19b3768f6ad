/** The broker on NATS JetStream. */
import { jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Random, Schedule, Stream } from "effect"
import { Broker, BrokerUnavailable, type Delivery, type OutgoingEvent } from "./Broker.ts"
import { connectionOptions } from "./connectionOptions.ts"
import { deadLetterMessages } from "./deadLetter.ts"
import { deliveries, NatsDelivery, type Reconnects } from "./deliveries.ts"
import { attempt, type BrokerMisconfigured, provision, type Provisioned, purgeDone, type Topics } from "./provision.ts"
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
  const connection = yield* Effect.acquireRelease(
    attempt("connect", () =>
      connect({
        ...connectionOptions(settings.servers).options,
        name: settings.connectionName,
        maxReconnectAttempts: -1,
        reconnectTimeWait: 250,
        reconnectJitter: 100,
        pingInterval: 10_000,
        timeout: 5_000,
      }),
    ).pipe(
      Effect.tapError((error) => Effect.logWarning(`${error.message}; trying again`)),
      Effect.retry(Schedule.spaced("2 seconds")),
    ),
    (nc) =>
      attempt("drain", () => nc.drain()).pipe(
        Effect.timeoutOption("2 seconds"),
        Effect.ignore,
        Effect.andThen(Effect.promise(() => nc.close())),
      ),
  )
  yield* Stream.fromAsyncIterable(connection.status(), (cause) => cause).pipe(
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

const toMessages = (topic: string, { payload, messageId, replyTo }: OutgoingEvent): ReadonlyArray<Message> => {
  const event = { subject: topic, payload, headers: messageIdHeaders(messageId), copyTo: undefined }
  if (replyTo === undefined) return [event]
  if (!replyTo.startsWith(`${topic}.`)) return [{ ...event, copyTo: replyTo }]
  // Below the response topic the stream takes the copy too, as a message of its own.
  return [{ ...event, subject: replyTo, headers: messageIdHeaders(`${messageId}:reply`) }, event]
}

const make = Effect.fnUntraced(function* (settings: NatsSettings) {
  const reconnects: Reconnects = { listeners: new Set() }
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
  const publishAll = yield* makePublisher(connection)
  const runPromise = Effect.runPromiseWith(yield* Effect.context())

  /** After a consumer was lost: a pause, then everything that is missing is made again. */
  const recover = (reason: string): Promise<void> =>
    runPromise(
      Effect.gen(function* () {
        if (connection.isClosed()) return yield* Effect.never
        yield* Effect.logWarning(`broker: the consumer is lost (${reason}); making sure of it`)
        yield* Effect.sleep(200 + 300 * (yield* Random.next))
        yield* Effect.catch(provisioned, (misconfigured) => Effect.logError(misconfigured.message))
      }),
    )

  yield* purgeDone(jsm, streams).pipe(
    Effect.catch((error) => Effect.logDebug(error.message)),
    Effect.delay("10 seconds"),
    Effect.forever,
    Effect.forkScoped,
  )

  const maxPayload = () => connection.info?.max_payload ?? 1024 * 1024
  return Broker.of({
    maxPayload,
    isConnected: () => !connection.isClosed() && connection.info !== undefined,
    appends: deliveries({ connection, stream: streams.logs, pull: appendsPull, recover }, reconnects),
    queries: deliveries({ connection, stream: streams.query, pull: queriesPull, recover }, reconnects),
    publish: (events) =>
      Effect.suspend(() => {
        const messages: Array<Message> = []
        for (const event of events) messages.push(...toMessages(settings.responseTopic, event))
        return publishAll(messages)
      }),
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
