/**
 * The life of an embedded server.
 *
 *     Stopped ──start──► Starting ──ready──► Serving
 *                         ▲   │                 │
 *                         │   └─────failed──────┴──ended by itself──► Pausing, or Lost where that was too often
 *                         └───────────────────────────────────────────────┘
 *
 * From everywhere `stop` leads to Stopped: an end that was asked for is no accident. What ends by itself is started again on
 * the same port and data, after longer and longer pauses. One that doesn't stay up is lost, and whoever serves from it has
 * to hear of that: it would be alive with nothing to work on.
 */
import { Clock, Deferred, Effect, FiberHandle, Result, type Scope, Semaphore } from "effect"
import { launch, ServerFailed, type ServerProcess, type ServerSpec } from "./serverProcess.ts"

/** A running server, which may be stopped, killed and started again on the same data. */
export interface ServerControl {
  /** Of the present process; -1 while there is none. */
  readonly pid: () => number
  /** Sends a signal and waits for the end; a second, forceful one follows after three seconds. It stays down. */
  readonly stop: (signal: NodeJS.Signals) => Effect.Effect<void>
  /** Starts it, after an orderly stop of what is there, and waits until it is ready. */
  readonly start: Effect.Effect<void, ServerFailed>
  /** Stops it in order and has it started again, since `because`. Returns when it is down; should it not come up, it is lost. */
  readonly restart: (because: string) => Effect.Effect<void>
  /** Fails once the server is given up. */
  readonly lost: Effect.Effect<never, ServerFailed>
}

type State =
  | { readonly _tag: "Stopped" }
  | { readonly _tag: "Starting" }
  | { readonly _tag: "Serving"; readonly process: ServerProcess }
  | { readonly _tag: "Pausing" }
  | { readonly _tag: "Lost" }

/** So often within this time a server is started again. A cause that goes by itself is gone after some seconds. */
const restartsMax = 5
const restartsWithinMillis = 60_000

/** The pause before the first time, doubled for each further one: three seconds over all. */
const firstPauseMillis = 100

/** Starts a server and waits until it is ready; looks after it, and stops it when the scope closes. */
export const startServer = Effect.fnUntraced(function* (
  spec: ServerSpec,
): Effect.fn.Return<ServerControl, ServerFailed, Scope.Scope> {
  let state: State = { _tag: "Stopped" }
  const lost = Deferred.makeUnsafe<never, ServerFailed>()
  const oneAtATime = Semaphore.makeUnsafe(1)
  /** Looks after the server between a start and the next stop. */
  const watcher = yield* FiberHandle.make<void, never>()

  const toServing = Effect.suspend(() => {
    state = { _tag: "Starting" }
    return Effect.tap(launch(spec), (process) => Effect.sync(() => (state = { _tag: "Serving", process })))
  }).pipe(Effect.uninterruptible)

  const toStopped = Effect.fnUntraced(function* (signal: NodeJS.Signals) {
    // First, so that nobody takes the end for an accident. A start that is under way is undone by that.
    yield* FiberHandle.clear(watcher)
    if (state._tag === "Serving") yield* state.process.stop(signal)
    state = { _tag: "Stopped" }
  })

  /** `process` is what serves; without one, the first thing is to start it. */
  const watch = Effect.fnUntraced(function* (process: ServerProcess | undefined) {
    const restarts: Array<number> = []
    for (let serving = process; ;) {
      let problem: string
      if (serving === undefined) {
        const started = yield* Effect.result(toServing)
        if (Result.isSuccess(started)) {
          serving = started.success
          yield* Effect.logInfo(`${spec.name}: serves again`)
          continue
        }
        problem = started.failure.problem
      } else {
        problem = `ended by itself (${yield* serving.ended})`
        serving = undefined
      }
      const now = yield* Clock.currentTimeMillis
      while (restarts.length > 0 && restarts[0]! <= now - restartsWithinMillis) restarts.shift()
      if (restarts.length === restartsMax) {
        state = { _tag: "Lost" }
        const often = `started again ${restartsMax} times within ${restartsWithinMillis / 1_000} s, and does not stay up`
        const error = new ServerFailed({
          server: spec.name,
          problem: `${often}: ${problem}; its log is ${spec.logFile}`,
        })
        return void Deferred.doneUnsafe(lost, error)
      }
      restarts.push(now)
      state = { _tag: "Pausing" }
      yield* Effect.logWarning(`${spec.name}: ${problem}; it is started again on its data. Its log is ${spec.logFile}`)
      yield* Effect.sleep(firstPauseMillis * 2 ** (restarts.length - 1))
    }
  })

  const start = toStopped(spec.stopSignal).pipe(
    Effect.andThen(toServing),
    Effect.tapError(() => Effect.sync(() => (state = { _tag: "Stopped" }))),
    Effect.flatMap((process) => FiberHandle.run(watcher, watch(process))),
    Effect.asVoid,
    oneAtATime.withPermits(1),
  )
  const stop = (signal: NodeJS.Signals) => oneAtATime.withPermits(1)(toStopped(signal))
  const restart = (because: string) =>
    Effect.logWarning(`${spec.name}: is started again, since ${because}`).pipe(
      Effect.andThen(toStopped(spec.stopSignal)),
      Effect.andThen(FiberHandle.run(watcher, watch(undefined))),
      Effect.asVoid,
      oneAtATime.withPermits(1),
    )

  yield* Effect.addFinalizer(() => stop(spec.stopSignal))
  yield* start
  const pid = () => (state._tag === "Serving" ? state.process.pid : -1)
  return { pid, stop, start, restart, lost: Deferred.await(lost) }
})
