/**
 * One run of the simulation: the real pipelines, several workers in one process, on simulated servers, under TestClock.
 *
 * One seed decides everything, so the same seed is the same run, byte for byte. A run has an active phase with faults; then
 * everything heals, drains, is read once more in every way, and is checked.
 */
import { Clock, Context, Effect, type Exit, Fiber, Layer, Logger, Random, References, Scheduler, Scope } from "effect"
import { Reactivity } from "effect/reactivity"
import { TestClock } from "effect/testing"
import { Broker } from "../../src/broker/Broker.ts"
import { layerMemory as metricsMemory } from "../../src/observe/Metrics.ts"
import * as limits from "../../src/pipeline/limits.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRing } from "../../src/placement/HashRing.ts"
import { ShardPool } from "../../src/shard/ShardPool.ts"
import { BrokerConnection } from "./BrokerConnection.ts"
import { check } from "./checker.ts"
import { Clients, isPoison, type ReadParameters } from "./Clients.ts"
import type { Accidents, Coverage } from "./faults.ts"
import { type Mutation, unchanged } from "./mutations.ts"
import { hourMillis, makePlan, type Plan } from "./Plan.ts"
import { Prng } from "./Prng.ts"
import { type Process, Processes, randomOf } from "./Processes.ts"
import { SimulatedBroker } from "./SimulatedBroker.ts"
import { SimulatedPostgres } from "./SimulatedPostgres.ts"
import { makeShardPool, SimulatedShard } from "./SimulatedShardPool.ts"
import { World } from "./World.ts"

export interface Run {
  readonly seed: number
  /** What went wrong, in words; empty for a good run. */
  readonly violations: ReadonlyArray<string>
  readonly coverage: Coverage
  readonly trace: string
  readonly appends: number
  readonly events: number
  readonly reads: number
  readonly virtualMillis: number
}

export interface Options {
  readonly mutation?: Mutation | undefined
  readonly traced?: boolean | undefined
}

/** How far time goes until somebody looks whether the run can end. */
const stepMillis = 5_000

/** Everything must have drained this long after all faults are gone. */
const drainMillisMax = 30 * 60_000

const shardNames = ["a", "b", "c"]

/** With one, two and three shards. */
const rings = shardNames.map((_, at) =>
  Effect.runSync(HashRing.make(shardNames.slice(0, at + 1).map((name) => ({ name })))),
)

interface Worker {
  readonly process: Process
  readonly connection: BrokerConnection
  readonly fiber: Fiber.Fiber<void, unknown>
  stopping: boolean
}

export const simulate = (seed: number, options: Options = {}): Run => {
  const plan = makePlan(seed)
  const processes = new Processes(new Prng(seed, 2), plan.operationsMean)
  let run: Run | undefined
  const program = Effect.map(Effect.scoped(simulation(seed, plan, processes, options)), (result) => (run = result))
  const fiber = Effect.runFork(program, { scheduler: processes.driver })
  processes.run()
  const exit: Exit.Exit<unknown, unknown> | undefined = fiber.pollUnsafe()
  if (exit?._tag === "Failure") throw new Error(`seed ${seed}: the simulation itself failed`, { cause: exit.cause })
  if (run === undefined) throw new Error(`seed ${seed}: the simulation did not end`)
  return run
}

const simulation = Effect.fnUntraced(function* (
  seed: number,
  plan: Plan,
  processes: Processes,
  { mutation = unchanged, traced = false }: Options,
) {
  const clock = yield* TestClock.make()
  // Before anybody sleeps, so that the clock does not wait for real time to warn.
  yield* clock.adjust(0)
  const world = new World(seed, clock, processes, plan.weather, traced)
  const broker = new SimulatedBroker(world, plan.maxPayload)
  const names = shardNames.slice(0, plan.shardCount)
  const ring = rings[names.length - 1]!
  const shards = names.map(
    (name) => new SimulatedShard(new SimulatedPostgres(name, world, mutation.tables, isPoison), world),
  )
  const shardWith = (id: bigint) => shards[names.indexOf(ring.shardOf(id))]!
  const shardOf = (id: bigint) => shardWith(id).postgres
  const clients = new Clients(broker, new Prng(seed, 3), plan.objects, plan, shardOf)
  const services = Context.make(HashRing, ring).pipe(
    Context.merge(yield* Layer.build(Layer.merge(metricsMemory, Reactivity.layer))),
    Context.add(References.TracerEnabled, false),
    Context.add(References.MinimumLogLevel, traced ? "Warn" : "Error"),
  )

  // --- Workers

  const workers: Array<Worker> = []
  let started = 0
  const startWorker = Effect.fnUntraced(function* () {
    const name = `w${++started}`
    const process = processes.make(name)
    const connection = new BrokerConnection(broker, process, plan.pullMost)
    const skewMillis = world.prng.chance(0.5) ? world.prng.between(-hourMillis, hourMillis) : 0
    if (skewMillis !== 0) world.strike("worker clock skewed")
    const pool = yield* makeShardPool(shards, process, mutation.rewrite).pipe(
      Effect.provideContext(services),
      // Its connections end with the process.
      Effect.provideService(Scope.Scope, yield* Scope.make()),
    )
    const logger = Logger.make(({ logLevel, message }) => {
      world.trace(() => `${name}: ${String(message)}`)
      // There is nothing here that an operator would have to act on.
      if (logLevel === "Error" || logLevel === "Fatal") world.violation(`${name} logs an error: ${String(message)}`)
    })
    const context = services.pipe(
      Context.add(Broker, mutation.broker(connection.service())),
      Context.add(ShardPool, mutation.shards(pool)),
      Context.add(Clock.Clock, process.clock(clock, skewMillis)),
      Context.add(Random.Random, randomOf(new Prng(seed, 100 + started))),
      Context.add(Scheduler.Scheduler, process),
      Context.add(Logger.CurrentLoggers, new Set([logger])),
    )
    world.trace(() => `${name} starts`)
    const fiber = Effect.runForkWith(context)(runWorker({ responseTopic: "response", debug: false }))
    const worker: Worker = { process, connection, fiber, stopping: false }
    workers.push(worker)
    fiber.addObserver((exit) => {
      if (!worker.stopping) world.violation(`${name} ended by itself: ${String(exit)}`)
      remove(worker)
    })
  })
  const start = () => void Effect.runFork(startWorker(), { scheduler: processes.driver })
  /** A process is gone: it gets no turn any more, its connections close. */
  const remove = (worker: Worker) => {
    worker.process.kill()
    worker.connection.killed()
    for (const shard of shards) {
      for (const session of Array.from(shard.sessions)) {
        if (session.process === worker.process) session.lost(world.prng.chance(0.3) ? "later" : "now")
      }
    }
    const at = workers.indexOf(worker)
    if (at >= 0) workers.splice(at, 1)
  }
  const kill = (worker: Worker) => {
    if (worker.process.dead) return
    world.strike("worker killed")
    world.trace(() => `${worker.process.name} killed`)
    remove(worker)
    world.later(world.prng.below(5_000), start)
  }
  const stop = (worker: Worker) => {
    if (worker.process.dead || worker.process.paused || worker.stopping) return
    world.strike("worker stopped")
    world.trace(() => `${worker.process.name} stops`)
    worker.stopping = true
    worker.fiber.interruptUnsafe()
    world.later(world.prng.below(5_000), start)
    world.later(120_000, () => {
      if (workers.includes(worker) && !worker.process.paused) world.violation(`${worker.process.name} does not stop`)
    })
  }
  const freeze = (worker: Worker) => {
    if (worker.process.dead || worker.process.paused) return
    world.strike("worker frozen beyond ack_wait")
    world.trace(() => `${worker.process.name} frozen`)
    worker.process.pause()
    world.later(world.prng.between(31_000, 100_000), () => {
      world.trace(() => `${worker.process.name} thawed`)
      worker.process.resume()
    })
  }

  // --- Accidents

  const { prng } = world
  const sometime = (event: () => void) => world.later(prng.below(plan.activeMillis), event)
  const someWorker = (event: (worker: Worker) => void) => {
    if (workers.length > 0) event(prng.pick(workers))
  }
  const times = (count: number, event: () => void) => {
    for (let i = 0; i < count; i++) sometime(event)
  }
  let healed = false
  const plannedAccidents = (accidents: Accidents) => {
    // In the middle of its work: so many turns after it was chosen.
    times(accidents.kills, () =>
      someWorker((worker) => {
        const event = () => healed || kill(worker)
        if (prng.chance(0.3)) worker.process.atCommit = event
        else worker.process.afterTurns(prng.below(200), event)
      }),
    )
    times(accidents.freezes, () =>
      someWorker((worker) => worker.process.afterTurns(prng.below(200), () => healed || freeze(worker))),
    )
    times(accidents.stops, () => someWorker(stop))
    times(accidents.connectionLosses, () => someWorker((worker) => worker.connection.lose(prng.between(1, 20_000))))
    times(accidents.brokerRestarts, () => broker.restart(prng.between(1, 60_000)))
    times(accidents.clockSetBacks, () => {
      world.strike("broker clock set back")
      world.brokerClockBehindNanos += BigInt(prng.between(1, 3_600_000)) * 1_000_000n
    })
    times(accidents.outages, () => {
      const shard = prng.pick(shards)
      if (shard.down) return
      if (prng.chance(0.3)) {
        world.strike("shard slow")
        shard.slowMillis = prng.between(1_000, 20_000)
      } else {
        world.strike("shard down for a while")
        shard.stop()
      }
      world.later(prng.between(100, 90_000), () => shard.start())
    })
  }
  const outageOfHours = () => {
    const shard = prng.pick(shards)
    world.later(prng.below(hourMillis), () => {
      world.strike("shard down for hours")
      shard.stop()
      world.later(prng.between(hourMillis, 2 * hourMillis), () => shard.start())
    })
  }
  const flood = () => {
    const objectId = prng.pick(plan.objects)
    const shard = shardWith(objectId)
    world.later(prng.below(10_000), () => {
      world.strike("shard down for a while")
      shard.stop()
      // More than the lanes of all workers hold: a batch that is tried, and one that waits.
      clients.flood(objectId, plan.workers * 2 * limits.batchEntriesMax + prng.between(200, 600))
      world.later(prng.between(20_000, 60_000), () => shard.start())
    })
  }

  // --- The run

  for (let i = 0; i < plan.workers; i++) yield* startWorker()
  plannedAccidents(plan.accidents)
  if (plan.kind === "hours") outageOfHours()
  if (plan.kind === "flood") flood()
  const clientProcess = processes.make("clients")
  const clientContext = Context.make(Clock.Clock, clientProcess.clock(clock, 0)).pipe(
    Context.add(Scheduler.Scheduler, clientProcess),
  )
  const runClient = <A>(client: Effect.Effect<A>) => Effect.runForkWith(clientContext)(client)
  const publishers = Array.from({ length: plan.publishers }, (_, i) =>
    runClient(clients.publisher(`p${i + 1}`, plan.appends, plan.gapMillis)),
  )
  const readers = Array.from({ length: plan.readers }, () =>
    runClient(clients.reader(plan.reads, Math.max(1_000, 2 * plan.gapMillis))),
  )
  for (let passed = 0; passed < plan.activeMillis && world.violations.length === 0; passed += stepMillis) {
    yield* clock.adjust(Math.min(stepMillis, plan.activeMillis - passed))
  }
  const isDone = (fibers: ReadonlyArray<Fiber.Fiber<unknown>>) =>
    fibers.every((fiber) => fiber.pollUnsafe() !== undefined)
  /** Lets time pass until it is so. */
  const until = Effect.fnUntraced(function* (isSo: () => boolean, what: string) {
    for (let waited = 0; !isSo() && world.violations.length === 0; waited += stepMillis) {
      if (waited > drainMillisMax) return world.violation(`${what} ${drainMillisMax / 60_000} minutes after all healed`)
      yield* clock.adjust(stepMillis)
    }
  })
  healed = true
  world.heal()
  clients.close()
  for (const shard of shards) shard.start()
  for (const worker of workers) worker.process.resume()
  if (workers.length === 0) yield* startWorker()
  yield* until(() => isDone(publishers) && isDone(readers), "clients still wait")
  yield* until(() => broker.unsettled() === 0, "requests are not settled")
  // What went wrong is told; a run that is broken does not get better by more of it.
  const ended = (): Run => {
    if (world.failure !== undefined) throw world.failure
    check(
      world,
      broker,
      clients,
      shards.map((shard) => shard.postgres),
      shardOf,
    )
    world.trace(() => `end: ${clients.sent.length} appends, ${broker.events.length} events`)
    return {
      seed,
      violations: world.violations,
      coverage: world.coverage,
      trace: world.lines.join("\n"),
      appends: clients.sent.length,
      events: broker.events.length,
      reads: broker.queries.messages.length,
      virtualMillis: world.now(),
    }
  }
  if (world.violations.length > 0) return ended()
  const lastReads = clients.objects.flatMap((objectId) => {
    const { length } = shardOf(objectId).entriesOf(BigInt.asIntN(64, objectId))
    return lastReadsOf(objectId, length).map((read) => ({ objectId, read }))
  })
  const answers = lastReads.map(({ read }) => runClient(clients.follow(read)))
  yield* until(() => isDone(answers), "the last reads are not answered")
  answers.forEach((answer, i) => {
    const exit = answer.pollUnsafe()
    if (exit?._tag !== "Success") return
    const { objectId, read } = lastReads[i]!
    const rows = shardOf(objectId).entriesOf(BigInt.asIntN(64, objectId))
    if (exit.value.length !== rows.length) {
      world.violation(
        `the pages of ${objectId} (${JSON.stringify({ ...read, objectId: undefined })}) have ${exit.value.length} of ${rows.length} entries`,
      )
    }
  })
  return ended()
})

/** Every way to read a whole log: at once and in parts, in each order. */
const lastReadsOf = (objectId: bigint, entries: number): ReadonlyArray<ReadParameters> => {
  const part = Math.ceil(entries / 7)
  return [
    { objectId, order: "asc" },
    { objectId, order: "desc" },
    { objectId, order: "asc", limit: part + 2 },
    { objectId, order: "desc", limit: part + 1 },
    { objectId, order: "position", afterPosition: 0, limit: part + 3 },
  ]
}
