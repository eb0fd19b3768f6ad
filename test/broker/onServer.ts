/** A broker service on a server whose configuration the test changes, and a client that may do everything. */
import { jetstream, type JetStreamManager, jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Logger, Queue, Schedule, Stream } from "effect"
import { Broker, type Delivery } from "../../src/broker/Broker.ts"
import { connectionOptions } from "../../src/nats/connectionOptions.ts"
import { NatsLive } from "../../src/broker/NatsLive.ts"
import type { Topics } from "../../src/broker/provision.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"

export const topics: Topics = {
  logsTopic: "logs",
  queryTopic: "query",
  responseTopic: "response",
  deadTopic: "dead",
  replicas: 1,
}

export const live = (url: string) => NatsLive({ ...topics, servers: url, connectionName: "test" })

/** Keeps what is logged. */
export const logInto = (logged: Array<string>) =>
  Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])

/** Asks again until it is so. */
export const until = <R>(what: string, holds: Effect.Effect<boolean, never, R>, seconds = 25) =>
  holds.pipe(
    Effect.repeat({ until: (is) => is, schedule: Schedule.spaced("20 millis") }),
    Effect.timeoutOrElse({ duration: seconds * 1_000, orElse: () => Effect.die(new Error(`expected: ${what}`)) }),
  )

export interface World {
  readonly connection: NatsConnection
  readonly jsm: JetStreamManager
  readonly publish: (text: string) => Effect.Effect<void>
  readonly taken: Queue.Dequeue<Delivery>
  readonly logged: Array<string>
}

/** `login` is the service's, as `user:password`; then the client is `all:a`. What the service takes is not settled. */
export const withBroker = <A>(
  configuration: string,
  login: string | undefined,
  test: (world: World) => Effect.Effect<A, unknown, Broker | ConfiguredNats>,
) =>
  Effect.gen(function* () {
    const server = yield* ConfiguredNats
    yield* server.start(configuration)
    const logged: Array<string> = []
    const connection = yield* Effect.acquireRelease(
      Effect.promise(() => connect(connectionOptions(server.url(login && "all:a"), "client"))),
      (made) => Effect.promise(() => made.close()),
    )
    const jsm = yield* Effect.promise(() => jetstreamManager(connection, { checkAPI: false }))
    yield* Effect.gen(function* () {
      const broker = yield* Broker
      const taken = yield* Queue.unbounded<Delivery>()
      yield* broker.appends.pipe(
        Stream.runForEachArray((chunk) => Queue.offerAll(taken, chunk)),
        Effect.forkScoped,
      )
      const publish = (text: string) =>
        Effect.tryPromise(() => jetstream(connection).publish("logs", text, { timeout: 1_000 })).pipe(
          Effect.retry(Schedule.spaced("50 millis")),
          Effect.orDie,
          Effect.asVoid,
        )
      yield* test({ connection, jsm, publish, taken, logged })
    }).pipe(Effect.provide(Layer.provideMerge(live(server.url(login)), logInto(logged))))
  }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer))
