use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn commands_read_as_the_readme_writes_them() {
    for line in [
        "skep serve --data d",
        "skep serve --data d --backend redis://h:6379/1 --gate waitaof:1 --artifacts s3://bucket/p --roles gateway,worker",
        "skep doctor --backend redis://h --gate wait:1 -o json",
        "skep self check --data d --listen 0.0.0.0:4020 --tls-cert a --tls-key b -o json",
        "skep self check --sha256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF",
        "skep serve --config skep.toml --node-name a --no-admin",
        "skep push hello.wasm --name hello --tag v1",
        "skep apply swarm.yaml --dry-run",
        "skep apply --grant --grant=http:api.example.com swarm.yaml",
        "skep apply",
        "skep request hello-world {} --header a=b --timeout 500ms --trace",
        "skep submit hello-world --file lines.txt",
        "skep submit hello-world a b c -o json",
        "skep logs s stage -f --tail 3",
        "skep audit list --since 24h --tenant acme -f",
        "skep audit verify --heads heads.json",
        "skep dlq s",
        "skep dlq s list --stage a",
        "skep dlq s show 7",
        "skep dlq s discard 7 8",
        "skep dlq s discard --all",
        "skep dlq s discard --all --until 24h --reason reject",
        "skep dlq s try 7 --module b:v2",
        "skep dlq s redrive 7 8",
        "skep dlq s redrive --all --stage a --key k --module ab12 --since 2h",
        "skep dlq s export --stage a",
        "skep state s stage key",
        "skep state get s stage key",
        "skep state list s/b --prefix k --limit 5 --after 0+k",
        "skep state export s/b --key k --file /tmp/x",
        "skep state import s/b -",
        "skep delete s --timeout 2m --discard",
        "skep pause s",
        "skep pause s/b",
        "skep pause s --drain --timeout 2m",
        "skep resume s/b",
        "skep --node http://h:1 swarms",
        "skep up samples/hello-world",
        "skep new bee --path /tmp/x",
        "skep completions bash",
        "skep apply - --discard-state --yes",
        "skep check -",
        "skep request s --file - --raw",
        "skep submit s - --skip-empty --retry-for 5s",
        "skep delete-module hello:v1",
        "skep compile-module",
        "skep run-tenant 1",
        "skep tenant create a --isolation process",
        "skep tenant set a --isolation shared",
        "skep push hello.py",
        "skep filter hello.wasm --bee hello --key-json /user --config a=b",
        "skep filter hello.py --messages --batch 1 --fresh --timeout 5s -o json",
        "skep backup all.skep",
        "skep backup -",
        "skep restore - -o json",
        "skep serve --data d --listen 0.0.0.0:4020 --tls-cert a --tls-key b --client-ca c --bootstrap-token t",
        "skep serve --data d --oidc-issuer https://id --oidc-audience a --oidc-role ops=operator --oidc-role dev=deploy --oidc-ca f",
        "skep login https://h:1 --ca ca.pem",
        "skep whoami",
        "skep logout",
        "skep tenant create acme",
        "skep tenant create acme --memory 256MiB --cpu 0.5 --weight 3 --rate 1000/s --concurrency 40 --storage 1GiB --log-rate 100/s",
        "skep tenant set acme --rate none --state 1GiB --modules 200MiB --in-flight 16MiB --instances 8",
        "skep tenant delete acme --purge",
        "skep usage --tenant acme --since 30d -o json",
        "skep token create --tenant acme --role deploy --ttl 30d --name ci",
        "skep token rotate 0123456789ab --grace 1h",
        "skep token bootstrap",
        "skep certs dev certs --host bees.example.org",
    ] {
        parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn everything_that_may_be_typed_is_explained() {
    fn look(command: &clap::Command, path: &str, mute: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        if command.get_about().is_none() {
            mute.push(path.clone());
        }
        for arg in command.get_arguments().filter(|a| !a.is_hide_set()) {
            if arg.get_help().is_none() {
                mute.push(format!("{path} {}", arg.get_id()));
            }
        }
        command.get_subcommands().for_each(|inner| look(inner, &path, mute));
    }
    let mut command = Cli::command();
    command.build();
    let mut mute = Vec::new();
    look(&command, "", &mut mute);
    assert!(mute.is_empty(), "no help text: {mute:#?}");
    for main in [
        "serve",
        "doctor",
        "push",
        "apply",
        "deploy",
        "request",
        "submit",
        "dlq",
        "delete-module",
        "filter",
    ] {
        let help = command.find_subcommand(main).unwrap().get_after_help();
        assert!(help.is_some_and(|h| h.to_string().contains("Example")), "{main}");
    }
}

#[test]
fn what_is_not_meant_is_refused_as_usage() {
    for line in [
        "skep",
        "skep serve --data d --sample-ratio 2",
        "skep request",
        "skep request s --header nope",
        "skep request s --timeout 30",
        "skep submit s",
        "skep submit s a --file f",
        "skep submit s a --key-json id",
        "skep dlq s discard",
        "skep dlq s redrive",
        "skep dlq s redrive 7 --all",
        "skep dlq s try",
        "skep pause s --timeout 2m",
        "skep nonsense",
        "skep tenant create acme --rate 1000",
        "skep tenant create acme --memory 0MiB",
        "skep tenant set acme --cpu -1",
        "skep tenant set acme --weight 3x",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}
