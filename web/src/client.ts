// The clients of our services, over gRPC-Web at the address that the page came from.
import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { AccessService } from "./gen/crescendo/v1/access_pb.ts";
import { CheckpointService } from "./gen/crescendo/v1/checkpoint_pb.ts";
import { JobService } from "./gen/crescendo/v1/job_pb.ts";
import { NodeService } from "./gen/crescendo/v1/node_pb.ts";
import { ObjectService } from "./gen/crescendo/v1/object_pb.ts";
import { ReviewService } from "./gen/crescendo/v1/review_pb.ts";
import { SampleService } from "./gen/crescendo/v1/sample_pb.ts";
import { ViewService } from "./gen/crescendo/v1/view_pb.ts";

/** Sends the token by script: no cookie, so nothing that another page could make a browser send. */
const bearing =
  (token: string): Interceptor =>
  (next) =>
  (request) => {
    if (token) request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };

const transport = (token: string) =>
  createGrpcWebTransport({
    baseUrl: globalThis.location.origin,
    interceptors: [bearing(token)],
    useBinaryFormat: true,
  });

export interface Clients {
  access: Client<typeof AccessService>;
  jobs: Client<typeof JobService>;
  nodes: Client<typeof NodeService>;
  checkpoints: Client<typeof CheckpointService>;
  objects: Client<typeof ObjectService>;
  review: Client<typeof ReviewService>;
  samples: Client<typeof SampleService>;
}

export function clients(token: string): Clients {
  const over = transport(token);
  return {
    access: createClient(AccessService, over),
    jobs: createClient(JobService, over),
    nodes: createClient(NodeService, over),
    checkpoints: createClient(CheckpointService, over),
    objects: createClient(ObjectService, over),
    review: createClient(ReviewService, over),
    samples: createClient(SampleService, over),
  };
}

export const viewClient = (token: string) => createClient(ViewService, transport(token));
