/**
 * The end after a signal. The first SIGTERM or SIGINT interrupts the program, which finishes or hands back what it holds;
 * each step of that is bounded. Should all steps together take longer than an operator's patience, or one of them hang,
 * the process ends nevertheless: what it has not given back is delivered again. A second signal ends it at once.
 */
import { constants } from "node:os"

/** Orchestrators kill after ten seconds or later. */
const endsWithinMillis = 9_500

let limited = true

/** For a command that ends after a signal in a way and a time of its own. */
export const endInOwnTime = (): void => {
  limited = false
}

/** Has this process end in time. To be called once, by the program. */
export const endInTime = (): void => {
  let signalled = false
  const onSignal = (signal: NodeJS.Signals) => {
    if (!limited) return
    if (signalled) {
      process.stderr.write(`objectlog: ended at once by a second ${signal}\n`)
      process.exit(128 + constants.signals[signal])
    }
    signalled = true
    setTimeout(() => {
      process.stderr.write(
        `objectlog: stopped; what was not finished within ${endsWithinMillis} ms is delivered again\n`,
      )
      process.exit(0)
    }, endsWithinMillis).unref()
  }
  process.on("SIGINT", onSignal)
  process.on("SIGTERM", onSignal)
}
