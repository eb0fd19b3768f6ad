/** The shards of a floor: one connection each, with its tables. */
import pg from "pg"

/** `SHARDS` is a JSON array of connection strings; `setup` makes what is missing. */
export const connectShards = (setup: string): Promise<ReadonlyArray<pg.Client>> =>
  Promise.all(
    (JSON.parse(process.env["SHARDS"]!) as ReadonlyArray<string>).map(async (connectionString) => {
      const client = new pg.Client({ connectionString })
      await client.connect()
      await client.query(setup)
      return client
    }),
  )
