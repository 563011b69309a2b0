// Creates the four roles of roles/*.json, or brings them up to date.
//
//   JOBS_DATABASE=shop mongosh "$ADMIN_URI" deploy/mongodb/create-roles.js
//
// They are made in the database admin: only there may a role reach into another one (the exporter's
// reads local). JOBS_COLLECTION is for jobs that are not in the collection "jobs".

const fs = require("fs");
const path = require("path");

const database = process.env.JOBS_DATABASE;
const collection = process.env.JOBS_COLLECTION || "jobs";
if (!database) {
  print("Set JOBS_DATABASE to the name of the database that the jobs are in.");
  quit(2);
}

const admin = db.getSiblingDB("admin");
for (const name of ["producer", "consumer", "setup", "exporter"]) {
  const role = JSON.parse(fs.readFileSync(path.join(__dirname, "roles", `${name}.json`), "utf8"));
  for (const { resource } of role.privileges) {
    if (resource.db === "JOBS_DATABASE") {
      resource.db = database;
      resource.collection = resource.collection.replace(/^jobs/, collection);
    }
  }
  const { createRole, ...rest } = role;
  const isThere = admin.runCommand({ rolesInfo: createRole }).roles.length > 0;
  const reply = admin.runCommand(isThere ? { updateRole: createRole, ...rest } : role);
  if (!reply.ok) {
    print(`${createRole}: ${reply.errmsg}`);
    quit(1);
  }
  print(`${createRole}: ${isThere ? "updated" : "created"} for ${database}.${collection}`);
}
