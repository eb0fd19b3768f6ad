/**
 * The program `objectlog`: its commands and its exit codes.
 *
 * 0: done, or stopped by a signal. 128 + n: ended at once by a second signal n. 1: failed. 2: wrong configuration or placement; nothing was touched.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Cause, Effect, Exit, type Runtime } from "effect"
import { CliError, Command } from "effect/cli"
import { appendCommand } from "./cli/append.ts"
import { deadCommand } from "./cli/dead.ts"
import { loadCommand } from "./cli/load.ts"
import { queryCommand } from "./cli/query.ts"
import { replayCommand } from "./cli/replay.ts"
import { endInTime } from "./cli/shutdown.ts"
import { startCommand } from "./cli/start.ts"
import { workerCommand } from "./cli/worker.ts"
import { urlCommand } from "./cli/url.ts"
import { version } from "./version.ts"

const wrongConfiguration = new Set(["ConfigInvalid", "PlacementMismatch", "BrokerMisconfigured", "InvalidPlacement"])

const tagOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : ""

/** One line for an expected failure; the whole cause for a defect, which is a bug. */
const report = (cause: Cause.Cause<unknown>): void => {
  if (Cause.hasInterruptsOnly(cause)) return
  const error = Cause.squash(cause)
  // The command line framework has printed its own errors with the help text.
  if (CliError.isCliError(error)) return
  process.stderr.write(
    Cause.hasDies(cause)
      ? `objectlog: ${Cause.pretty(cause)}\n`
      : `objectlog: ${error instanceof Error ? error.message : String(error)}\n`,
  )
}

const teardown: Runtime.Teardown = (exit, onExit) => {
  if (Exit.isSuccess(exit)) return onExit(0)
  // An interrupted fiber's exit says nothing else; `load` still finds out whether all is right, and leaves the code.
  if (Cause.hasInterruptsOnly(exit.cause)) return onExit(Number(process.exitCode ?? 0))
  report(exit.cause)
  onExit(wrongConfiguration.has(tagOf(Cause.squash(exit.cause))) ? 2 : 1)
}

endInTime()

Command.make("objectlog").pipe(
  Command.withDescription("an append-only log of text messages for every object"),
  Command.withSubcommands([
    startCommand,
    workerCommand,
    appendCommand,
    queryCommand,
    deadCommand,
    replayCommand,
    urlCommand,
    loadCommand,
  ]),
  Command.run({ version }),
  Effect.provide(NodeServices.layer),
  (program) => NodeRuntime.runMain(program, { disableErrorReporting: true, teardown }),
)
