/**
 * Help on request goes to standard output. What is wrong with a command goes to standard error, in lines, with where to find
 * help: standard output may be a pipe, to a reader that takes what comes for a result.
 */
import { Effect } from "effect"
import { CliOutput } from "effect/cli"
import { lastWords } from "./output.ts"

const oneLine = (text: string): string => text.replaceAll(/\s*\n\s*/g, " ")

export const usageLayer = CliOutput.layerPresenter({
  present: (event) => {
    if (event._tag === "Version" || (event._tag === "Help" && event.reason === "Requested")) {
      return CliOutput.defaultPresenter.present(event)
    }
    return Effect.sync(() => {
      if (event._tag === "Help") {
        const help = CliOutput.defaultFormatter({ colors: false }).formatHelpDoc(event.helpDoc)
        return void process.stderr.write(`${help}\n`)
      }
      for (const { message } of event.errors) lastWords(oneLine(message))
      lastWords(`${event.commandPath.join(" ")} --help says more`)
    })
  },
})
