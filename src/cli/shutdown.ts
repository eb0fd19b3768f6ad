/**
 * The end after a signal. The first SIGTERM, SIGINT or SIGHUP interrupts the program, which finishes or hands back what it
 * holds; each step of that is bounded. Should all steps together take longer than an operator's patience, or one of them
 * hang, the process ends nevertheless: what it has not given back is delivered again. A second signal ends it at once.
 */
import { constants } from "node:os"
import { lastWords } from "./output.ts"

/** Orchestrators kill after ten seconds or later. */
const endsWithinMillis = 9_500

/**
 * The same signal so soon after the first is that one once more: a terminal sends Ctrl-C to npm and to the program, as a
 * service manager does SIGTERM, and npm passes on its own; a terminal that is closed sends SIGHUP, and its shell does too.
 */
const echoMillis = 1_000

/** From now on: what is still at work after that time is ended with it. */
const limit = (code: number, said: string): void => {
  setTimeout(() => {
    lastWords(said)
    process.exit(code)
  }, endsWithinMillis).unref()
}

type Listener = (signal: NodeJS.Signals) => void

const listeners = new Set<Listener>()
const heardAt = new Map<NodeJS.Signals, number>()

const hear: Listener = (signal) => {
  const now = performance.now()
  if (now - (heardAt.get(signal) ?? Number.NEGATIVE_INFINITY) < echoMillis) return
  heardAt.set(signal, now)
  for (const listener of listeners) listener(signal)
}

/** Has `listener` hear of each further signal that somebody sends, once. Returns how to hear no more. */
export const onSignal = (listener: Listener): (() => void) => {
  listeners.add(listener)
  return () => listeners.delete(listener)
}

let limited = true

/** For a command that ends after a signal in a way and a time of its own. */
export const endInOwnTime = (): void => {
  limited = false
}

/** For a program that fails because of `problem`, whose own end may hang on the same. */
export const failInTime = (problem: string): void => limit(1, problem)

/** Has this process end in time after a signal. To be called once, by the program. */
export const endInTime = (): void => {
  process.on("SIGINT", hear)
  process.on("SIGTERM", hear)
  // Whose terminal is closed is to end as in order as who is stopped. Where it is ignored, as by nohup, Node resets that.
  process.on("SIGHUP", () => process.kill(process.pid, "SIGTERM"))
  let signalled = false
  onSignal((signal) => {
    if (!limited) return
    if (signalled) {
      lastWords(`ended at once by a second ${signal}`)
      process.exit(128 + constants.signals[signal])
    }
    signalled = true
    limit(0, `stopped; what was not finished within ${endsWithinMillis} ms is delivered again`)
  })
}
