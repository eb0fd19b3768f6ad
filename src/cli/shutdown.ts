/**
 * The end after a signal. The first SIGTERM or SIGINT interrupts the program, which finishes or hands back what it holds;
 * each step of that is bounded. Should all steps together take longer than an operator's patience, or one of them hang,
 * the process ends nevertheless: what it has not given back is delivered again. A second signal ends it at once.
 */
import { constants } from "node:os"

/** Orchestrators kill after ten seconds or later. */
const endsWithinMillis = 9_500

/** From now on: what is still at work after that time is ended with it. */
const limit = (code: number, said: string): void => {
  setTimeout(() => {
    process.stderr.write(`objectlog: ${said}\n`)
    process.exit(code)
  }, endsWithinMillis).unref()
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
  let signalled = false
  const onSignal = (signal: NodeJS.Signals) => {
    if (!limited) return
    if (signalled) {
      process.stderr.write(`objectlog: ended at once by a second ${signal}\n`)
      process.exit(128 + constants.signals[signal])
    }
    signalled = true
    limit(0, `stopped; what was not finished within ${endsWithinMillis} ms is delivered again`)
  }
  process.on("SIGINT", onSignal)
  process.on("SIGTERM", onSignal)
}
