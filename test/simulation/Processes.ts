/**
 * Processes of a simulation: whose turn it is, who is paused, who is dead.
 *
 * Every fiber of a process runs on the process's own scheduler, and the next task is drawn among the processes that have
 * one. So a seed decides how workers interleave, and a process can be stopped between any two effects: a killed one is
 * simply never given a turn again, no finalizer runs, just as after kill -9. Within a process tasks keep their order, as on
 * the real scheduler.
 */
import { Clock, Context, Duration, Effect, Latch, Random, Scheduler } from "effect"
import type { Prng } from "./Prng.ts"

export class Process implements Scheduler.Scheduler {
  readonly executionMode = "async"
  readonly name: string
  readonly #all: Processes
  readonly tasks: Array<() => void> = []
  readonly #running = Latch.makeUnsafe(true)
  dead = false
  paused = false
  /** Strikes while its next commit is under way. */
  atCommit: (() => void) | undefined
  /** Turns until something happens to it. */
  #turnsLeft = Infinity
  #then: (() => void) | undefined
  #operationsLeft: number

  constructor(all: Processes, name: string, operationsLeft: number) {
    this.#all = all
    this.name = name
    this.#operationsLeft = operationsLeft
  }

  shouldYield(): boolean {
    if (--this.#operationsLeft > 0) return false
    this.#operationsLeft = this.#all.operations()
    return true
  }

  makeDispatcher(): Scheduler.SchedulerDispatcher {
    return { scheduleTask: (task) => this.#all.add(this, task), flush: () => undefined }
  }

  /** Passes while the process runs; waits while it is paused; never ends once it is dead. For whatever wakes it from outside. */
  readonly gate: Effect.Effect<void> = Effect.suspend(() => {
    if (this.dead) return Effect.never
    return this.paused ? Effect.andThen(this.#running.await, this.gate) : Effect.void
  })

  /** Runs `event` in the middle of its work, so many turns from now. */
  afterTurns(turns: number, event: () => void): void {
    this.#turnsLeft = turns
    this.#then = event
  }

  /** One turn passes; false if the process has none any more. */
  turn(): boolean {
    if (--this.#turnsLeft >= 0) return true
    const then = this.#then
    this.#turnsLeft = Infinity
    this.#then = undefined
    then?.()
    return !this.dead && !this.paused
  }

  kill(): void {
    this.dead = true
    this.tasks.length = 0
    this.#all.changed(this)
  }

  pause(): void {
    this.paused = true
    this.#running.closeUnsafe()
    this.#all.changed(this)
  }

  resume(): void {
    if (this.dead || !this.paused) return
    this.paused = false
    this.#all.changed(this)
    this.#running.openUnsafe()
  }

  /** A clock that runs `skewMillis` off, and wakes nobody who is paused or dead. */
  clock(base: Clock.Clock, skewMillis: number): Clock.Clock {
    const skewNanos = BigInt(skewMillis) * 1_000_000n
    const millis = () => base.currentTimeMillisUnsafe() + skewMillis
    const nanos = () => base.currentTimeNanosUnsafe() + skewNanos
    return {
      currentTimeMillisUnsafe: millis,
      currentTimeMillis: Effect.sync(millis),
      currentTimeNanosUnsafe: nanos,
      currentTimeNanos: Effect.sync(nanos),
      monotonicTimeNanosUnsafe: () => base.monotonicTimeNanosUnsafe(),
      monotonicTimeNanos: base.monotonicTimeNanos,
      // In whole milliseconds, as timers are. In a fiber outside of the process: one that is killed while it is inside of the clock would leave it locked.
      sleep: (duration: Duration.Duration) =>
        Effect.callback((resume) => {
          const fiber = Effect.runFork(base.sleep(Duration.millis(Math.ceil(Duration.toMillis(duration)))), {
            scheduler: this.#all.servers,
          })
          fiber.addObserver(() => {
            if (!this.dead) resume(this.gate)
          })
          return Effect.sync(() => fiber.interruptUnsafe())
        }),
    }
  }
}

export class Processes {
  readonly #prng: Prng
  /** Those that have a task and may run. */
  readonly #ready: Array<Process> = []
  /** Moves the time; has its turn only when nobody else can do anything. */
  readonly driver: Process
  /** Where everything happens that is not a worker's or a client's: never interleaved within itself. */
  readonly servers: Process
  readonly #operationsMean: number

  /** `operationsMean`: how many effects a fiber runs before another one may get its turn, on average. */
  constructor(prng: Prng, operationsMean: number) {
    this.#prng = prng
    this.#operationsMean = operationsMean
    this.driver = new Process(this, "driver", Infinity)
    this.servers = new Process(this, "servers", Infinity)
  }

  operations(): number {
    return 1 + this.#prng.below(2 * this.#operationsMean)
  }

  make(name: string): Process {
    return new Process(this, name, this.operations())
  }

  add(process: Process, task: () => void): void {
    if (process.dead) return
    process.tasks.push(task)
    if (process.tasks.length === 1) this.changed(process)
  }

  changed(process: Process): void {
    if (process === this.driver) return
    const at = this.#ready.indexOf(process)
    const isReady = process.tasks.length > 0 && !process.dead && !process.paused
    if (isReady && at < 0) this.#ready.push(process)
    if (!isReady && at >= 0) this.#ready.splice(at, 1)
  }

  /** Runs until nobody has anything to do, not even the driver. */
  run(): void {
    while (true) {
      if (this.#ready.length === 0) {
        const task = this.driver.tasks.shift()
        if (task === undefined) return
        task()
        continue
      }
      const process = this.#ready.length === 1 ? this.#ready[0]! : this.#prng.pick(this.#ready)
      if (!process.turn()) continue
      const task = process.tasks.shift()
      if (process.tasks.length === 0) this.changed(process)
      task?.()
    }
  }
}

/** Effect's own chance, drawn from a Prng. */
export const randomOf = (prng: Prng): Context.Service.Shape<typeof Random.Random> => ({
  nextIntUnsafe: () => prng.between(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
  nextDoubleUnsafe: () => prng.unit(),
})
