//! The peers: nginx that does the same job with Lua (mTLS in, `appId` spliced in, MD5, headers, pooled TLS out), and nginx that only
//! passes on. Debian's packages, set up for speed: kept connections, tickets, an access log to a file.

use std::path::Path;
use std::process::Command;

use super::process::Process;
use super::{Cores, Result, Street, free_port, on, rule};

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Puts `appId` in, stamps and signs.
    Signs,
    /// Nothing of that.
    Passes,
}

/// What it says in its log of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Its own default, a hundred bytes.
    Default,
    /// What the gateway's says, as far as nginx knows it.
    Full,
}

/// A running nginx.
pub struct Nginx {
    /// Its master.
    pub process: Process,
    /// Where callers connect.
    pub port: u16,
}

const MODULES: &str = "/usr/lib/nginx/modules";

/// What to do where it's missing.
const MISSING: &str =
    "the peers are missing: apt-get install --no-install-recommends nginx libnginx-mod-http-lua";

impl Nginx {
    /// Starts one that passes everything to this port.
    pub fn start(
        street: &Street,
        host: u16,
        (job, line): (Job, Line),
        workers: usize,
        cores: Cores,
    ) -> Result<Self> {
        if !Path::new(MODULES).join("ngx_http_lua_module.so").exists() {
            return Err(MISSING.into());
        }
        let port = free_port()?;
        let name = format!("nginx-{port}");
        let text = configuration(street, (port, host), (job, line), workers, &name);
        let path = street.write(&format!("{name}/nginx.conf"), &text)?;
        let mut command = on(cores, "/usr/sbin/nginx".as_ref());
        command.arg("-e").arg(street.path(&name).join("error.log"));
        command
            .arg("-p")
            .arg(street.path(&name))
            .arg("-c")
            .arg(path);
        let mut process = Process::start(&mut command)?;
        process.listens(port)?;
        process.has_children(workers)?;
        Ok(Self { process, port })
    }

    /// Debian's version of it.
    pub fn version() -> Result<String> {
        let said = Command::new("/usr/sbin/nginx")
            .arg("-v")
            .output()
            .map_err(|_| MISSING)?;
        Ok(String::from_utf8_lossy(&said.stderr)
            .trim()
            .replace("nginx version: ", ""))
    }
}

fn configuration(
    street: &Street,
    (port, host): (u16, u16),
    (job, line): (Job, Line),
    workers: usize,
    name: &str,
) -> String {
    let (tls, folder) = (street.path("tls"), street.path(name));
    let (tls, folder) = (tls.display(), folder.display());
    let line = match line {
        Line::Default => "combined",
        Line::Full => "full",
    };
    let app_id = rule::app_id(0);
    let key = rule::key(&app_id);
    let signing = match job {
        Job::Passes => String::new(),
        Job::Signs => format!(
            r#"
      access_by_lua_block {{
        ngx.req.read_body()
        local body = ngx.req.get_body_data()
        if not body or string.byte(body, 1) ~= 123 then return ngx.exit(400) end
        body = '{{"appId":"{app_id}",' .. string.sub(body, 2)
        ngx.req.set_body_data(body)
        ngx.req.set_header("time-stamp", string.format("%.0f", ngx.now() * 1000))
        ngx.req.set_header("data-signature", string.upper(ngx.md5("{key}" .. body)))
      }}"#
        ),
    };
    let modules = match job {
        Job::Passes => String::new(),
        Job::Signs => format!(
            "load_module {MODULES}/ndk_http_module.so;\nload_module {MODULES}/ngx_http_lua_module.so;\n"
        ),
    };
    format!(
        r#"{modules}daemon off;
worker_processes {workers};
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections 15000; }}
http {{
  log_format full escape=json '{{"timestamp":"$time_iso8601","request_id":"$request_id","peer":"$remote_addr:$remote_port","caller":"$ssl_client_s_dn",'
    '"uri":"$uri","status":$status,"upstream":"$upstream_addr","upstream_status":"$upstream_status","attempt_s":"$upstream_response_time",'
    '"duration_s":$request_time,"request_bytes":"$content_length","reply_bytes":$body_bytes_sent}}';
  access_log {folder}/access.log {line};
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream kybio {{
    server 127.0.0.1:{host};
    keepalive 200;
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port} ssl http2 backlog=4096;
    ssl_certificate {tls}/gateway.pem;
    ssl_certificate_key {tls}/gateway.key;
    ssl_client_certificate {tls}/callers-ca.pem;
    ssl_verify_client on;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:sessions:32m;
    keepalive_requests 100000000;
    keepalive_timeout 120s;
    client_max_body_size 2m;
    client_body_buffer_size 2m;
    location /openapi/v1/ {{{signing}
      proxy_pass https://kybio/pospal-api2/openapi/v1/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host localhost;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {tls}/callers-ca.pem;
      proxy_ssl_name localhost;
      proxy_ssl_server_name on;
      proxy_ssl_protocols TLSv1.2 TLSv1.3;
      proxy_buffers 8 16k;
    }}
  }}
}}
"#
    )
}
