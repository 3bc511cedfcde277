module brokermesh.test/pause

go 1.21
