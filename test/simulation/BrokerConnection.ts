/** One worker's connection to the simulated broker: the `Broker` that its pipelines see. */
import { Effect, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import { Broker, BrokerUnavailable, type Delivery, type OutgoingEvent, untroubled } from "../../src/broker/Broker.ts"
import { decodeText } from "../../src/contract/Request.ts"
import type { MessageTrace } from "../../src/trace/MessageTrace.ts"
import type { Process } from "./Processes.ts"
import type { SimulatedBroker } from "./SimulatedBroker.ts"
import type { Held, Pull, SimulatedConsumer } from "./SimulatedConsumer.ts"

/** Without a confirmation a publication is given up after this long. */
const confirmationTimeoutMillis = 5_000

const unconfirmed = {
  publish: "event stored, confirmation lost",
  "dead letter": "dead letter stored, confirmation lost",
  park: "parked, confirmation lost",
} as const

const isNonEmpty = <A>(all: Array<A>): all is [A, ...Array<A>] => all.length > 0

class SimulatedDelivery implements Delivery {
  readonly held: Held
  readonly deliveryCount: number
  trace: MessageTrace | undefined
  readonly #connection: BrokerConnection
  readonly #consumer: SimulatedConsumer
  #settled = false

  constructor(connection: BrokerConnection, consumer: SimulatedConsumer, held: Held) {
    this.#connection = connection
    this.#consumer = consumer
    this.held = held
    this.deliveryCount = held.deliveries
  }

  get subject(): string {
    return this.held.message.subject
  }

  get seq(): number {
    return this.held.message.seq
  }

  get timestamp(): bigint {
    return this.held.message.timestamp
  }

  get outcomePrefix(): string {
    return ""
  }

  get payload(): Uint8Array {
    return this.held.message.payload
  }

  get text(): string | undefined {
    return decodeText(this.payload)
  }

  get heldBytes(): number {
    return 2 * this.payload.byteLength
  }

  detach(): void {}

  header(name: string): string | undefined {
    return this.held.message.headers[name]
  }

  ack(): void {
    if (this.#settled) return
    this.#settled = true
    this.#connection.frame("acknowledgement lost", this.#connection.world.weather.ackLost, () =>
      this.#consumer.ack(this.held),
    )
  }

  retry(delayMillis: number): void {
    if (this.#settled) return
    this.#settled = true
    this.#connection.frame("hand-back lost", this.#connection.world.weather.handBackLost, () =>
      this.#consumer.retry(this.held, delayMillis),
    )
  }

  working(): void {
    if (this.#settled) return
    this.#connection.frame("sign of life lost", this.#connection.world.weather.signLost, () =>
      this.#consumer.working(this.held),
    )
  }
}

const isSimulated = (delivery: Delivery): delivery is SimulatedDelivery => delivery instanceof SimulatedDelivery

/** What one subscription of a worker has got and its pipeline did not take yet. */
class Subscription implements Pull {
  readonly #connection: BrokerConnection
  readonly #consumer: SimulatedConsumer
  readonly #most: number
  #buffer: Array<SimulatedDelivery> = []
  #underWay = 0
  #wake: (() => void) | undefined
  #closed = false

  constructor(connection: BrokerConnection, consumer: SimulatedConsumer, most: number) {
    this.#connection = connection
    this.#consumer = consumer
    this.#most = most
  }

  room(): number {
    return this.#most - this.#buffer.length - this.#underWay
  }

  send(all: ReadonlyArray<Held>): void {
    const connection = this.#connection
    const { broker, generation, world } = connection
    this.#underWay += all.length
    let millis = world.latency()
    if (world.prng.chance(world.weather.lateDelivery)) {
      millis += world.prng.between(1_000, 40_000)
      world.strike("delivery late")
    }
    const { epoch } = broker
    const deliveries = all.map((held) => new SimulatedDelivery(connection, this.#consumer, held))
    world.later(millis, () => {
      if (generation !== connection.generation || epoch !== broker.epoch || connection.process.dead) return
      this.#underWay -= deliveries.length
      world.trace(
        () =>
          `${connection.process.name} <- ${this.#consumer.name} ${deliveries.map((each) => `#${each.seq}×${each.deliveryCount}`).join(" ")}`,
      )
      if (this.#closed) return deliveries.forEach((delivery) => delivery.retry(0))
      this.#buffer.push(...deliveries)
      this.#wake?.()
    })
  }

  /** Asks the broker, which knows nothing of earlier requests. */
  open(): void {
    this.#underWay = 0
    if (this.#closed) return
    if (!this.#consumer.pulls.includes(this)) this.#consumer.pulls.push(this)
    this.#consumer.dispatch()
  }

  forget(): void {
    const at = this.#consumer.pulls.indexOf(this)
    if (at >= 0) this.#consumer.pulls.splice(at, 1)
  }

  close(): void {
    this.#closed = true
    this.forget()
    for (const delivery of this.#buffer) delivery.retry(0)
    this.#buffer = []
  }

  readonly take: Effect.Effect<NonEmptyReadonlyArray<Delivery>> = Effect.suspend(() => {
    const taken = this.#buffer
    if (!isNonEmpty(taken)) return Effect.andThen(this.#arrival, this.take)
    this.#buffer = []
    this.#consumer.dispatch()
    return Effect.succeed(taken)
  })

  readonly #arrival: Effect.Effect<void> = Effect.callback((resume) => {
    if (this.#buffer.length > 0) return resume(Effect.void)
    this.#wake = () => {
      this.#wake = undefined
      resume(this.#connection.process.gate)
    }
    return Effect.sync(() => (this.#wake = undefined))
  })
}

export class BrokerConnection {
  readonly broker: SimulatedBroker
  readonly process: Process
  /** Counts the connections: what was under way on an earlier one is lost. */
  generation = 0
  up: boolean
  readonly #subscriptions = new Set<Subscription>()
  readonly #pullMost: number

  constructor(broker: SimulatedBroker, process: Process, pullMost: number) {
    this.broker = broker
    this.process = process
    this.up = broker.up
    this.#pullMost = pullMost
    broker.onRestart.push(() => {
      if (process.dead) return
      if (broker.up) this.#reconnect()
      else this.#disconnected()
    })
  }

  get world() {
    return this.broker.world
  }

  /** Loses the connection; the client makes it again by itself. */
  lose(millis: number): void {
    if (!this.up || this.process.dead) return
    this.world.strike("broker connection lost")
    this.world.trace(() => `${this.process.name} lost its broker connection`)
    this.#disconnected()
    const { generation } = this
    this.world.later(millis, () => {
      if (generation === this.generation && this.broker.up) this.#reconnect()
    })
  }

  #disconnected(): void {
    this.up = false
    this.generation++
    for (const subscription of this.#subscriptions) subscription.forget()
  }

  #reconnect(): void {
    if (this.process.dead || this.up) return
    this.up = true
    this.generation++
    for (const subscription of this.#subscriptions) subscription.open()
  }

  /** The process is gone. The broker notices at once, or goes on sending to nobody for a while. */
  killed(): void {
    const close = () => {
      for (const subscription of this.#subscriptions) subscription.forget()
    }
    if (this.world.prng.chance(0.5)) close()
    else this.world.later(this.world.prng.between(1, 20_000), close)
  }

  /** Sends a frame that nobody confirms. */
  frame(name: "acknowledgement lost" | "sign of life lost" | "hand-back lost", lost: number, arrive: () => void): void {
    const { broker, generation, process, world } = this
    if (process.dead || !this.up) return
    if (world.prng.chance(lost)) return world.strike(name)
    const { epoch } = broker
    world.later(world.latency(), () => {
      if (epoch !== broker.epoch || generation !== this.generation) return
      // What a killed process had not flushed never left it.
      if (process.dead && world.prng.chance(0.5)) return
      arrive()
    })
  }

  /** Stores things one by one, each of which may get lost or its confirmation; succeeds when all were confirmed. */
  #confirmed<A>(
    operation: "publish" | "dead letter" | "park",
    all: ReadonlyArray<A>,
    store: (each: A) => void,
  ): Effect.Effect<void, BrokerUnavailable> {
    return Effect.callback((resume) => {
      const { broker, generation, process, world } = this
      const finish = (millis: number, result: Effect.Effect<void, BrokerUnavailable>) =>
        world.later(millis, () => {
          if (!process.dead) resume(Effect.andThen(process.gate, result))
        })
      const fail = (reason: string) =>
        finish(
          world.prng.between(1, confirmationTimeoutMillis),
          Effect.fail(new BrokerUnavailable({ operation, cause: new Error(reason) })),
        )
      if (!this.up) return fail("not connected")
      const { epoch } = broker
      const lost = world.prng.chance(world.weather.eventLost) ? world.prng.below(all.length) : Infinity
      world.later(world.latency(), () => {
        if (epoch !== broker.epoch || generation !== this.generation) return fail("connection lost")
        for (const [at, each] of all.entries()) {
          if (at !== lost) store(each)
        }
        if (lost !== Infinity) {
          world.strike("event lost")
          return fail("not confirmed in time")
        }
        if (world.prng.chance(world.weather.eventConfirmationLost)) {
          world.strike(unconfirmed[operation])
          return fail("not confirmed in time")
        }
        finish(world.latency(), Effect.void)
      })
    })
  }

  #subscribe(consumer: SimulatedConsumer): Stream.Stream<Delivery> {
    return Stream.unwrap(
      Effect.map(
        Effect.acquireRelease(
          Effect.sync(() => {
            const subscription = new Subscription(this, consumer, this.#pullMost)
            this.#subscriptions.add(subscription)
            if (this.up) subscription.open()
            return subscription
          }),
          (subscription) =>
            Effect.sync(() => {
              subscription.close()
              this.#subscriptions.delete(subscription)
            }),
        ),
        (subscription) => Stream.fromPull(Effect.succeed(subscription.take)),
      ),
    ).pipe(Stream.scoped)
  }

  #storeEvent({ messageId, payload, replyTo }: OutgoingEvent): void {
    const { broker } = this
    if (replyTo?.startsWith("response.")) {
      broker.storeEvent({ subject: replyTo, payload, messageId: `${messageId}:reply` })
    }
    broker.storeEvent({ subject: "response", payload, messageId })
  }

  service(): Broker["Service"] {
    const { broker } = this
    return Broker.of({
      maxPayload: () => broker.maxPayload,
      connection: () => ({ ...untroubled, connected: this.up }),
      closed: Effect.never,
      state: Effect.succeed({ appends: undefined, queries: undefined, problems: [] }),
      appends: this.#subscribe(broker.appends),
      queries: this.#subscribe(broker.queries),
      publish: (events) =>
        Effect.suspend(() => {
          const large = events.find(({ payload }) => Buffer.byteLength(payload) > broker.maxPayload)
          if (large !== undefined) this.world.violation(`an event is larger than max_payload: ${large.messageId}`)
          return events.length === 0
            ? Effect.void
            : this.#confirmed("publish", events, (event) => this.#storeEvent(event))
        }),
      deadLetter: (delivery, reason) =>
        isSimulated(delivery)
          ? this.#confirmed("dead letter", [delivery.held.message], (original) =>
              broker.storeDeadLetter({ ...reason, original }),
            )
          : Effect.die(new Error("not a delivery of this broker")),
      park: (kind, shard, deliveries) =>
        Effect.as(
          this.#confirmed("park", deliveries.filter(isSimulated), ({ held }) => broker.park(kind, shard, held.message)),
          [],
        ),
      parked: (kind, shard) => this.#subscribe(broker.parked(kind, shard)),
      retries: Stream.never,
    })
  }
}
